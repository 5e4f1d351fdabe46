"""What ``Stream`` refuses, before a kernel runs: its kernels trust every address and size."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import fused_rnn

pytestmark = pytest.mark.cpu_only("streams run on the CPU")

REFUSED = {
    "rank": (
        lambda s: s(torch.zeros(5)),
        ValueError,
        "Stream: Expected input to be 2D (one step) or 3D, got 1D",
    ),
    "dtype": (lambda s: s(torch.zeros(2, 5).double()), ValueError, "RNN input dtype (torch.float64) does not match"),
    "meta": (lambda s: s(torch.zeros(2, 5, device="meta")), ValueError, "Stream runs on the CPU, the input is on meta"),
    "features": (
        lambda s: s(torch.zeros(2, 6)),
        RuntimeError,
        "input.size(-1) must be equal to input_size. Expecte",
    ),
    "batch": (lambda s: s(torch.zeros(4, 3, 5)), RuntimeError, "Stream: Expected a batch of 2, got 3"),
    "no steps": (
        lambda s: s(torch.zeros(0, 2, 5)),
        RuntimeError,
        "Expected sequence length to be larger than 0",
    ),
    "copy": (copy.deepcopy, TypeError, "a Stream is neither copied nor pickled: fork()"),
    "pickle": (pickle.dumps, TypeError, "a Stream is neither copied nor pickled: fork()"),
    "grad": (lambda s: s(torch.zeros(2, 5, requires_grad=True)), RuntimeError, "Stream is for inference"),
    "row": (lambda s: s.reset([2]), IndexError, "index 2 is out of bounds for a batch of 2"),
    "mask": (lambda s: s.reset(torch.ones(3, dtype=torch.bool)), IndexError, "The shape of the mask [3]"),
    "state": (
        lambda s: setattr(s, "state", (torch.zeros(1, 2, 7), torch.zeros(1, 2, 6))),
        RuntimeError,
        "Expected hidden[1] size (1, 2, 7), got [1, 2, 6]",
    ),
    "state's dtype": (
        lambda s: setattr(s, "state", (torch.zeros(1, 2, 7), torch.zeros(1, 2, 7).double())),
        RuntimeError,
        "LSTM: hx and cx must have the dtype of input and weights (torch.float32)",
    ),
    "state's device": (
        lambda s: setattr(s, "state", (torch.zeros(1, 2, 7), torch.zeros(1, 2, 7, device="meta"))),
        ValueError,
        "Stream runs on the CPU, the state is on meta",
    ),
    "half a state": (
        lambda s: setattr(s, "state", (torch.zeros(1, 2, 7), None)),
        TypeError,
        "Expected hidden[1] to be a tensor, got NoneType",
    ),
    "one of two states": (
        lambda s: setattr(s, "state", (torch.zeros(1, 2, 7),)),
        RuntimeError,
        "lstm expects two hidden states",
    ),
    "zeros that are nowhere": (
        lambda s: s(torch._efficientzerotensor(2, 5)),
        RuntimeError,
        "Stream works on memory",
    ),
    "floats for rows": (lambda s: s.reset([0.5]), TypeError, "rows must be a bool mask or signed integers, got torch."),
    "bytes for rows": (
        lambda s: s.reset(torch.ones(2, dtype=torch.uint8)),
        TypeError,
        "rows must be a bool mask or signed integers, got torch.uint8",
    ),
    "fork": (lambda s: s.fork(0), ValueError, "batch_size must be a positive int below 2^31, got 0"),
    "a list": (lambda s: s([[0.0] * 5] * 2), TypeError, "Stream: Expected input to be a tensor, got list"),
    "no states": (lambda s: setattr(s, "state", None), RuntimeError, "lstm expects two hidden states"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_calls(what):
    call, error, text = REFUSED[what]
    stream = fused_rnn.Stream(nn.LSTM(5, 7), 2)
    with pytest.raises(error, match="^" + re.escape(text)):
        call(stream)
    assert all(not part.any() for part in stream.state)


@pytest.mark.filterwarnings("ignore")
def test_tracers_are_refused():
    """They record no kernel that works on memory: what they made would give what happens to lie there."""
    stream, x = fused_rnn.Stream(nn.GRU(5, 7), 2), torch.zeros(2, 5)
    with pytest.raises(RuntimeError, match="Stream works on memory"):
        torch.jit.trace(lambda x: stream(x), (x,))
    with pytest.raises(RuntimeError, match="Stream works on memory"):
        make_fx(stream)(x)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError, match="Stream works on memory"):
        stream(x)


class Mine(nn.GRU):
    def forward(self, x, hx=None):
        y, h = super().forward(x, hx)
        return 2 * y, h


class Named(fused_rnn.GRU):
    """Another name and nothing else."""


def test_subclasses_that_compute_the_same():
    module, x = Named(3, 4), torch.randn(2, 3)
    torch.testing.assert_close(fused_rnn.Stream(module, 2)(x), module(x[None])[0][0])


def hollow():
    module = fused_rnn.LSTM(3, 3)
    module.forward = lambda x: None
    return module


def with_weight(name, shape):
    module = nn.GRU(3, 4, 2)
    setattr(module, name, nn.Parameter(torch.zeros(shape)))
    return module


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: fused_rnn.Stream(nn.Linear(3, 3)), TypeError, "Stream takes an LSTM, GRU or RNN module, got Linear"),
        (
            lambda: fused_rnn.Stream(nn.GRU(3, 3, bidirectional=True)),
            ValueError,
            "Stream takes modules of one",
        ),
        (lambda: fused_rnn.Stream(nn.GRU(3, 3, device="meta")), ValueError, "Stream runs on the CPU, the module is on"),
        (
            lambda: fused_rnn.Stream(nn.GRU(3, 3, dtype=torch.complex64)),
            ValueError,
            "Stream takes one of torch",
        ),
        (lambda: fused_rnn.Stream(nn.GRU(3, 3), 0), ValueError, "batch_size must be a positive int below 2^31, got 0"),
        (
            lambda: fused_rnn.Stream(nn.GRU(3, 3), 1.5),
            ValueError,
            "batch_size must be a positive int below 2^31, got 1.5",
        ),
        (
            lambda: fused_rnn.Stream(nn.GRU(3, 3), 2**62),
            ValueError,
            "batch_size must be a positive int below 2^31, got",
        ),
        (
            lambda: fused_rnn.Stream(Mine(3, 3)),
            TypeError,
            "Stream cannot know what the forward of its own does that Mine",
        ),
        (
            lambda: fused_rnn.Stream(hollow()),
            TypeError,
            "Stream cannot know what the forward of its own does that LSTM",
        ),
        (lambda: fused_rnn.Stream(with_weight("weight_hh_l1", (1, 1))), RuntimeError, ""),
        (lambda: fused_rnn.Stream(with_weight("weight_ih_l0", (5, 3))), RuntimeError, ""),
        (lambda: fused_rnn.Stream(with_weight("bias_ih_l0", (1,))), RuntimeError, ""),
    ],
)
def test_refused_modules(make, error, text):
    with pytest.raises(error, match="^" + re.escape(text)):
        make()


def test_forward_mode_is_refused():
    stream, x = fused_rnn.Stream(nn.GRU(5, 7), 2), torch.randn(2, 5)
    with forward_ad.dual_level():
        with pytest.raises(RuntimeError, match="Stream is for inference: its input has a tangent"):
            stream(forward_ad.make_dual(x, x))
        assert stream(x).any()  # without a tangent
