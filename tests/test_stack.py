"""Several layers by one op, side by side in threads where that pays: the same bits as one after the other."""

from __future__ import annotations

import pytest
import torch
from pairs import KINDS, flat
from torch.library import opcheck
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn import _C, ops, stack
from fused_rnn.reference import Cell

pytestmark = pytest.mark.cpu_only("an op of the CPU's")

H, I = 40, 6
OPTIONS = {
    "plain": {},
    "deep": {"num_layers": 5},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True},
    "in eval mode": {"dropout": 0.5},
}
LSTM_OPTIONS = {
    "projected": {"proj_size": 12},
    "peepholes": {"peephole": True, "activation": "softsign"},
    "normalised": {"layer_norm": True},
    "zoneout in eval mode": {"zoneout_h": 0.2, "zoneout_c": 0.3},
}
CASES = [(kind, name) for kind in KINDS for name in OPTIONS] + [("LSTM", name) for name in LSTM_OPTIONS]


def module(kind, name, dtype=torch.float32):
    options = {"num_layers": 3} | (OPTIONS | LSTM_OPTIONS)[name]
    return getattr(fused_rnn, kind)(I, H, **options).to(dtype).eval()


@pytest.fixture
def calls(monkeypatch):
    """How many calls the op got; ``one_by_one()`` takes it away for a while."""

    class Calls:
        count = 0

        @staticmethod
        def one_by_one(function, *args, **kwargs):
            with monkeypatch.context() as without:
                without.setattr(stack, "layers_at_once", lambda *_: None)
                return function(*args, **kwargs)

    def counted(*args):
        Calls.count += 1
        return original(*args)

    original = ops.stack_forward
    monkeypatch.setattr(ops, "stack_forward", counted)
    return Calls


def same(got, want):
    assert all(torch.equal(a, b) for a, b in zip(flat(got), flat(want), strict=True))


def side_by_side(kind, steps, batch, count):
    """Whether the plan says so."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    flops = batch * H * (2 * gates * H + 100 * gates)
    return _C.divide_loop(1, batch, 8, 4 * gates * 48 * H, steps, flops, count, layers=3)["layers"] > 1


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_same_bits(kind, name, count, calls, threads):
    own = module(kind, name)
    threads(count)
    with torch.no_grad():
        for steps, batch in ((500, 1), (333, 2), (40, 3), (3, 2), (1, 1)):
            assert steps < 300 or side_by_side(kind, steps, batch, count) == (count > 1)
            x = torch.randn(batch, steps, I) if own.batch_first else torch.randn(steps, batch, I)
            got = own(x)
            same(got, calls.one_by_one(own, x))
            hx = tuple(map(torch.randn_like, got[1])) if kind == "LSTM" else torch.randn_like(got[1])
            same(own(x, hx), calls.one_by_one(own, x, hx))
    assert calls.count == 10


@pytest.mark.parametrize(("kind", "hidden", "steps"), [("LSTM", 16, 32768), ("GRU", 24, 16384), ("RNN", 64, 8705)])
def test_pieces_of_very_long_sequences(kind, hidden, steps, calls, threads):
    """A sixteenth of the steps is more than a walk has room for."""
    own, x = getattr(fused_rnn, kind)(I, hidden, 2), torch.randn(steps, 1, I)
    threads(2)
    with torch.no_grad():
        same(own(x), calls.one_by_one(own, x))
    assert calls.count == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_type_packed_and_with_resets(kind, dtype, calls, threads):
    own = module(kind, "plain", dtype)
    x = torch.randn(300, 3, I).to(dtype)
    packed = pack_padded_sequence(x, torch.tensor([120, 300, 1]), enforce_sorted=False)
    states = [torch.randn(3, 3, H).to(dtype) for _ in range(2)]
    hx = tuple(states) if kind == "LSTM" else states[0]
    reset = torch.rand(300, 3) < 0.05
    threads(3)
    with torch.no_grad():
        same(own(packed, hx), calls.one_by_one(own, packed, hx))
        for to in ("zero", "initial"):
            options = {"reset": reset, "reset_to": to}
            same(own(x, hx, **options), calls.one_by_one(own, x, hx, **options))
    assert calls.count == 3


@pytest.mark.parametrize("kind", KINDS)
def test_where_layers_go_one_by_one(kind, calls):
    x = torch.randn(5, 2, I)
    own = module(kind, "plain")
    own(x)  # weights want gradients
    with torch.no_grad():
        module(kind, "in eval mode").train()(x)
        getattr(fused_rnn, kind)(I, H, 2, bidirectional=True)(x)
        getattr(fused_rnn, kind)(I, H, 2, connection="residual")(x)
        getattr(fused_rnn, kind)(I, H, 1)(x)
        getattr(fused_rnn, kind)(I, H, 2, zoneout_h=0.1)(x)
        torch.func.vmap(own)(torch.randn(2, 5, 2, I))
        assert calls.count == 0
        y, _ = own(x[:, :0])
        assert y.shape == (5, 0, H)
        assert calls.count == 1
    torch.testing.assert_close(own.requires_grad_(False)(x)[0], own.requires_grad_(True)(x)[0], rtol=0, atol=0)
    assert calls.count == 2


def arguments(cell, states=2):
    gates = {Cell.LSTM: 4, Cell.GRU: 3, Cell.RNN_TANH: 1}[cell]
    weights = [torch.randn(gates * H, k) for k in (I, H, H, H)]
    h0 = torch.randn(states, 3, H)
    return torch.randn(7, 3, I), h0, h0 if cell == Cell.LSTM else None, weights, None, int(cell), 2


@pytest.mark.parametrize("cell", [Cell.LSTM, Cell.GRU, Cell.RNN_TANH])
def test_opcheck(cell):
    for states in (1, 2):
        opcheck(torch.ops.fused_rnn.stack_forward.default, arguments(cell, states))


def test_wrong_arguments():
    x, h0, c0, weights, *others = arguments(Cell.LSTM)
    call = torch.ops.fused_rnn.stack_forward
    with pytest.raises(RuntimeError, match=r"stack_forward: h0 must be \[layers,B,..\] or \[1,B,..\], got \[3,"):
        call(x, torch.randn(3, 3, H), c0, weights, *others)
    with pytest.raises(RuntimeError, match="3 weights are not those of 2 layers alike"):
        call(x, h0, c0, weights[:3], *others)
    with pytest.raises(RuntimeError, match="c0 is an LSTM's, and an LSTM needs it"):
        call(x, h0, None, weights, *others)
    with pytest.raises(RuntimeError, match=r"stack_forward: w_ih must have shape"):
        call(x, h0, c0, [*weights[:2], weights[0], weights[3]], *others)
