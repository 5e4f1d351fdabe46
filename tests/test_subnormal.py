"""Numbers that lose digits (of f32 below 2^-126): loops make none, take those that come from outside, and leave the
thread's own arithmetic alone."""

import pytest
import torch
from devices import flushes
from torch import nn

import fused_rnn

H = 20
pytestmark = [
    pytest.mark.cpu_only("a GPU is as fast with them"),
    pytest.mark.skipif(not flushes(), reason="this CPU is as fast with them"),
]


def halving(library, steps, rows=3):
    """A relu RNN whose gradient halves at each step, exactly, and what reaches h0."""
    rnn = library.RNN(2, H, nonlinearity="relu")
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.zero_()
        rnn.bias_ih_l0.fill_(1)
        rnn.weight_hh_l0.copy_(torch.eye(H) / 2)
    h0 = torch.ones(1, rows, H, requires_grad=True)
    rnn(torch.zeros(steps, rows, 2), h0)[0][-1].sum().backward()
    return h0.grad


@pytest.mark.parametrize("rows", [1, 40])
def test_gradients_vanish_to_zero(isa, rows):
    assert (halving(fused_rnn, 126, rows) == 2.0**-126).all()
    assert (halving(nn, 130, rows) == 2.0**-130).all()
    assert (halving(fused_rnn, 130, rows) == 0).all()


def test_states_vanish_to_zero(isa):
    rnn = fused_rnn.RNN(1, H, nonlinearity="relu", bias=False)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(torch.eye(H) / 2)
        y = rnn(torch.zeros(140, 2, 1), torch.ones(1, 2, H))[0]
    exact = 0.5 ** torch.arange(1.0, 141.0, dtype=torch.float64)
    assert torch.equal(y[:, 0, 0].double(), torch.where(exact < 2.0**-126, 0, exact))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_those_from_outside_count(isa, dtype):
    """In f16 they are no rarity: 6e-5 is one."""
    rnn = fused_rnn.RNN(H, H, nonlinearity="relu", bias=False, dtype=dtype)
    with torch.no_grad():
        rnn.weight_hh_l0.zero_()
        rnn.weight_ih_l0.copy_(torch.eye(H) * (2**30 if dtype == torch.float32 else 1))
        x = torch.arange(1.0, 30 * 2 * H + 1).view(30, 2, H).mul(2.0**-149 if dtype == torch.float32 else 2.0**-24)
        y = rnn(x.to(dtype))[0]
    assert torch.equal(y, (x * (2.0**30 if dtype == torch.float32 else 1)).to(dtype))


@pytest.mark.parametrize("flushes", [False, True])
def test_a_thread_s_own_arithmetic_is_as_it_was(flushes):
    """After calls, and after one that raised; on every thread of torch's, some of which BLAS was on."""
    tiny = torch.full((1 << 20,), 2.0**-126)
    torch.set_flush_denormal(flushes)
    try:
        halving(fused_rnn, 130)
        halved = tiny / 2
        with pytest.raises(RuntimeError):
            fused_rnn.RNN(1, 1024)(torch.zeros(1).expand(2**40, 16, 1))
        again = tiny / 2
    finally:
        torch.set_flush_denormal(False)
    for result in (halved, again):
        here, elsewhere = result[0], result[-1]
        assert here == (0 if flushes else 2.0**-127)
        assert flushes or elsewhere == here


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_the_same_bits_on_any_number_of_threads(kind):
    """Each thread of a team does without them."""
    torch.manual_seed(0)
    module = getattr(fused_rnn, kind)(8, 64, dtype=torch.float32)
    x, h0 = torch.randn(500, 16, 8), torch.zeros(1, 16, 64, requires_grad=True)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            state = (h0, torch.zeros(1, 16, 64)) if kind == "LSTM" else h0
            found.append(torch.autograd.grad(module(x, state)[0][-1].sum(), h0)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    assert not ((found[0] != 0) & (found[0].abs() < 2.0**-126)).any()
