"""What becomes of CUDA tensors, as far as it shows without a GPU: on fake ones, which have a device and no memory."""

import warnings
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fused_rnn
from fused_rnn import fallback, functional, network, ops, reference
from fused_rnn.diagnostics import gradient_flow
from fused_rnn.dropout import Rows, dropped_for_all_steps

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
CELLS = ["lstm", "gru", "rnn_tanh"]
pytestmark = pytest.mark.cpu_only("a GPU at hand shows it itself")


@pytest.fixture
def device():
    with FakeTensorMode():
        yield torch.device("cuda")


def run(name, device, dtype=torch.float32, layers=1, bidirectional=False, **options):
    """Outputs for an input that is not there, without a thought for values."""
    gates = GATES[name]
    params = []
    directions = 2 if bidirectional else 1
    for features in [3, *[4 * directions] * (layers - 1)] * directions:
        params += [torch.empty(gates * 4, columns, device=device, dtype=dtype) for columns in (features, 4)]
        if options.get("layer_norm"):
            rows = [gates * 4] * 2 + ([4, 4] if name == "lstm" else [])
            params += [torch.empty(count, device=device, dtype=dtype) for count in rows]
    x = torch.empty(5, 2, 3, device=device, dtype=dtype)
    name = "rnn" if options.keys() & {"nonlinearity", "layer_norm"} and name.startswith("rnn") else name
    y, state = getattr(functional, name)(x, None, params, num_layers=layers, bidirectional=bidirectional, **options)
    return [y, *state] if isinstance(state, tuple) else [y, state]


@pytest.mark.parametrize("name", CELLS)
def test_one_warning_where_there_are_no_kernels(name, device, monkeypatch):
    monkeypatch.setattr(network, "WITHOUT_CUDA", "nobody built them")
    monkeypatch.setattr(fallback, "_warned", set())
    ran = []
    monkeypatch.setattr(fallback, "run", lambda net, input, *_: ran.append(net) or (input, input, None))
    with pytest.warns(UserWarning, match="CUDA tensors go to torch's own functions, as nobody built them") as caught:
        run(name, device)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(name, device)
    assert len(ran) == 2


def by_reference_alone(monkeypatch):
    """The variants that it is given."""
    ran = []

    def layer(x, h0, c0, *args):
        variant, _, cells, _ = args[-4:]
        ran.append(variant)
        every_c = x.new_empty(5, 2, 4) if cells else None
        return x.new_empty(5, 2, 4), h0, c0, every_c

    monkeypatch.setattr(reference, "layer", layer)
    monkeypatch.setattr(ops, "layer_forward", None)
    monkeypatch.setattr(fallback, "run", None)
    return ran


SOFTSIGN = {
    "lstm": {"activation": "softsign"},
    "gru": {"activation": "softsign"},
    "rnn_tanh": {"nonlinearity": "softsign"},
}


@pytest.mark.parametrize("name", CELLS)
def test_one_warning_where_a_variant_has_no_kernels(name, device, monkeypatch):
    """Torch's own functions do not know it: no op and none of them runs."""
    monkeypatch.setattr(network, "WITHOUT_CUDA", "nobody built them")
    monkeypatch.setattr(fallback, "_warned", set())
    ran = by_reference_alone(monkeypatch)
    with pytest.warns(UserWarning, match="CUDA tensors go through plain torch, step by step") as caught:
        run(name, device, layers=2, **SOFTSIGN[name])
    assert len(caught) == 1
    assert len(ran) == 2
    assert all(variant.state for variant in ran)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(name, device, **SOFTSIGN[name])


@pytest.mark.parametrize("name", CELLS)
def test_variants_go_to_the_kernels(name, device, monkeypatch):
    monkeypatch.setattr(network, "WITHOUT_CUDA", "")
    variants = []
    forward = ops.layer_forward
    monkeypatch.setattr(ops, "layer_forward", lambda *args: variants.append(args[9]) or forward(*args))
    for given in (
        SOFTSIGN[name],
        {"zoneout_h": 0.2},
        {"recurrent_dropout": 0.2, "training": True},
        {"clip_grad_norm": 0.2},
        {"layer_norm": True},
    ):
        y, *_ = run(name, device, layers=2, **given)
        assert y.device.type == "cuda"
    assert len(variants) == 10
    assert all(any(variant) for variant in variants)


@pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN")
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_what_is_recorded_goes_to_the_kernels(kind, device, monkeypatch):
    """No further than forward, as autograd takes no tensors of a device that is not there."""
    monkeypatch.setattr(network, "WITHOUT_CUDA", "")
    monkeypatch.setattr(reference, "layer", None)
    monkeypatch.setattr(torch.nn.RNNBase, "reset_parameters", lambda _: None)  # which would draw on the device
    rnn = getattr(fused_rnn, kind)(3, 4, 2, device=device).requires_grad_(False)
    given = []
    forward = ops.layer_forward
    monkeypatch.setattr(ops, "layer_forward", lambda *args: given.append(args[0].device.type) or forward(*args))
    with gradient_flow(rnn):
        rnn(torch.empty(5, 2, 3, device=device))
    assert given == ["cuda", "cuda"]


class Uploads(TorchDispatchMode):
    """What is copied from the CPU, and whether the host waits for it."""

    def __init__(self):
        super().__init__()
        self.blocking = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and result.device.type == "cuda":
            self.blocking.append(not kwargs.get("non_blocking"))
        return result


@pytest.mark.parametrize("name", CELLS)
def test_lengths_go_to_the_kernels(name, device, monkeypatch):
    """And nothing asks for a number, which fake tensors do not have: the host would wait. Nor does it for a copy."""
    monkeypatch.setattr(network, "WITHOUT_CUDA", "")
    resets = []
    forward = ops.layer_forward
    monkeypatch.setattr(ops, "layer_forward", lambda *args: resets.append(args[7]) or forward(*args))
    for where, dtype in (("cuda", torch.int32), ("cpu", torch.int32), ("cpu", torch.int64)):
        lengths = torch.empty(2, dtype=dtype, device=where)
        with Uploads() as uploads:
            y, *states = run(name, device, bidirectional=True, lengths=lengths)
        assert uploads.blocking == ([] if where == "cuda" else [False])
        assert (y.shape, y.device.type) == ((5, 2, 8), "cuda")
        assert all((state.shape, state.device.type) == ((2, 2, 4), "cuda") for state in states)
    assert resets == [None] * 6


def test_masks_for_all_steps_of_packed_rows(device):
    data, batch_sizes = torch.empty(7, 3, device=device), torch.empty(4, dtype=torch.int64, device="cpu")
    with Uploads() as uploads:
        dropped_for_all_steps(data, 0.5, Rows(2, None, batch_sizes))
    assert uploads.blocking == [False]


def test_resets_go_to_the_kernels(device, monkeypatch):
    """Those of a relu network's lengths too, which keep what lies past the ends from growing."""
    monkeypatch.setattr(network, "WITHOUT_CUDA", "")
    resets = []
    forward = ops.layer_forward
    monkeypatch.setattr(ops, "layer_forward", lambda *args: resets.append(args[7]) or forward(*args))
    reset = torch.empty(5, 2, dtype=torch.bool, device=device)
    y, *_ = run("gru", device, reset=reset)
    assert (y.device.type, resets.pop() is reset) == ("cuda", True)
    lengths = torch.empty(2, dtype=torch.int64, device=device)
    run("rnn_relu", device, bidirectional=True, lengths=lengths)
    assert [mask.shape for mask in resets] == [(5, 2)] * 2


@pytest.mark.parametrize("options", [{"lengths": 2}, {"cells": True}], ids=str)
def test_one_warning_where_torch_has_no_such_option(options, device, monkeypatch):
    monkeypatch.setattr(network, "WITHOUT_CUDA", "nobody built them")
    monkeypatch.setattr(fallback, "_warned", set())
    by_reference_alone(monkeypatch)
    if "lengths" in options:
        options = {"lengths": torch.empty(2, dtype=torch.int64, device=device)}
    with pytest.warns(UserWarning, match="plain torch, step by step, as nobody built them") as caught:
        run("lstm", device, **options)
    assert len(caught) == 1


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ops_take_them_where_there_are(name, dtype, device, monkeypatch):
    monkeypatch.setattr(network, "WITHOUT_CUDA", "")
    called = []
    forward = ops.layer_forward
    monkeypatch.setattr(ops, "layer_forward", lambda *args: called.append(args) or forward(*args))
    result = run(name, device, dtype, layers=2)
    assert len(called) == 2
    assert all(t.device.type == "cuda" and t.dtype == dtype for t in result)


@pytest.mark.parametrize("name", CELLS)
def test_autocast_casts_everything(name, device, monkeypatch):
    monkeypatch.setattr(network, "WITHOUT_CUDA", "")
    seen = []
    forward = ops.layer_forward
    monkeypatch.setattr(ops, "layer_forward", lambda *args: seen.append(args) or forward(*args))
    # `torch.autocast` itself stays off where there is no device.
    monkeypatch.setattr(network, "_autocasts", lambda: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    entered = []
    monkeypatch.setattr(torch, "autocast", lambda device, enabled: entered.append(enabled) or nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda" and not entered)
    result = run(name, device)
    assert entered == [False]
    x, h0, c0, weights, *_ = seen[0]
    assert {t.dtype for t in (x, h0, *weights, *([] if c0 is None else [c0]))} == {torch.bfloat16}
    assert all(t.dtype == torch.bfloat16 for t in result)


def test_why_there_are_none():
    """In this build, whichever it is, the library's word and torch's agree."""
    registered = torch._C._dispatch_has_kernel_for_dispatch_key("fused_rnn::layer_backward", "CUDA")
    assert registered == (not ops.WITHOUT_CUDA)
    if not torch.version.cuda:
        assert "a build without CUDA" in ops.WITHOUT_CUDA


def test_every_op_has_its_cuda_kernel_or_none_has():
    names = ("layer_forward", "layer_backward", "layer_backward_gates")
    found = {torch._C._dispatch_has_kernel_for_dispatch_key(f"fused_rnn::{name}", "CUDA") for name in names}
    assert len(found) == 1
