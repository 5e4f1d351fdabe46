"""Sums of squares that the backward op tells of every row, beside hooks on each step of the reference."""

import math
from dataclasses import replace

import pytest
import torch
from loop_cases import CELLS, Case, all_needs, assert_identical, backward, forward, make
from torch.library import opcheck

from fused_rnn import ops, reference
from fused_rnn.ops import Save, Square
from fused_rnn.recording import LayerRecord
from fused_rnn.reference import Activation, Cell, Variant, gates_of

F64 = torch.float64

OPTIONS = [
    {},
    {"D": 2, "packed": True},
    {"D": 2, "reset": "initial", "bias": False},
    {"packed": True, "reset": "zero"},
]
LSTM_OPTIONS = [
    {"P": 4, "D": 2, "packed": True, "reset": "initial", "cells": True},
    {"P": 4, "reset": "zero"},
    {"D": 2, "cells": True, "reset": "zero", "packed": True},
    {"P": 12, "H": 9},  # nothing forbids it
]
KINDS = [Case(cell, **option) for cell in CELLS for option in OPTIONS]
KINDS += [Case(Cell.LSTM, **option) for option in LSTM_OPTIONS]
KINDS += [
    Case(
        Cell.LSTM, D=2, P=4, packed=True, variant=Variant(Activation.HARD_SIGMOID, Activation.SOFTSIGN, peephole=True)
    ),
    Case(Cell.LSTM, reset="zero", cells=True, variant=Variant(peephole=True, coupled=True)),
    Case(Cell.GRU, D=2, reset="initial", variant=Variant(Activation.TANH, Activation.RELU)),
    Case(Cell.RNN_TANH, variant=Variant(0, Activation.SOFTSIGN)),
    Case(Cell.GRU, D=2, packed=True, reset="initial", variant=Variant(reset_before=True)),
    Case(Cell.LSTM, D=2, P=4, reset="zero", cells=True, variant=Variant(peephole=True, layer_norm=True)),
    Case(Cell.GRU, packed=True, variant=Variant(layer_norm=True)),
]
# What stands between two steps: masks, zoneout, clips, which cut some rows and leave others.
BETWEEN = Variant(recurrent_dropout=0.4, zoneout_h=0.3, zoneout_c=0.5)
CUT = {"clip_value": 0.4, "clip_norm": 0.9}
KINDS += [
    Case(Cell.LSTM, D=2, packed=True, seeded=True, variant=BETWEEN),
    Case(Cell.LSTM, P=4, reset="zero", seeded=True, variant=BETWEEN._replace(peephole=True, **CUT)),
    Case(Cell.LSTM, P=4, D=2, reset="initial", cells=True, variant=BETWEEN._replace(layer_norm=True, **CUT)),
    Case(Cell.LSTM, D=2, packed=True, reset="zero", cells=True, variant=Variant(clip_norm=0.9)),
    Case(Cell.GRU, D=2, packed=True, reset="initial", variant=Variant(**CUT)),
    Case(Cell.GRU, reset="zero", seeded=True, variant=Variant(zoneout_h=0.3, layer_norm=True)),
    Case(Cell.GRU, D=2, packed=True, seeded=True, variant=BETWEEN._replace(zoneout_c=0, reset_before=True, **CUT)),
    Case(Cell.GRU, seeded=True, variant=Variant(recurrent_dropout=0.4)),
    Case(Cell.RNN_TANH, packed=True, reset="zero", seeded=True, variant=BETWEEN._replace(zoneout_c=0)),
    Case(Cell.RNN_TANH, D=2, reset="zero", variant=Variant(zoneout_h=0.3, layer_norm=True, **CUT)),
    Case(Cell.RNN_RELU, D=2, packed=True, reset="initial", variant=Variant(clip_value=0.3)),
]
# Few steps on weights as they lie, pieces of time, more than a block of units.
SIZES = {
    "one_step": {"T": 1, "B": 2},
    "small": {"T": 9},
    "wide": {"T": 3, "H": 190},
    "many_rows": {"T": 40, "B": 40},
    "blocks": {"T": 7, "B": 9, "H": 70},
}


def told(problem, save=Save.ALL, needs=None):
    y, _, _, saved = forward(problem, save)
    p = problem
    inputs = (p.dy, p.dhn, p.dcn, p.x, p.h0, p.c0, p.weights, y, saved, p.batch_sizes, int(p.cell))
    needs = all_needs(p) if needs is None else needs
    return ops.layer_backward(*inputs, needs, p.reset, p.reset_initial, p.variant, p.seed, p.dcells, True)


def hooked(problem):
    """The same by autograd: a hook on every state and on what goes on from it."""
    p = problem
    sizes = [p.x.shape[1]] * len(p.x) if p.batch_sizes is None else p.batch_sizes.tolist()
    hidden = p.weights[0].shape[0] // gates_of(p.cell, p.variant)
    record = LayerRecord(p.cell, p.variant, sizes, hidden, len(p.h0), p.reset)
    weights = [w.clone().requires_grad_() for w in p.weights]
    options = (None, p.reset, p.reset_initial, p.variant, p.seed, p.dcells is not None, record)
    y, hn, cn, cells = reference.layer(p.x, p.h0, p.c0, weights, p.batch_sizes, p.cell, *options)
    pairs = [(o, g) for o, g in ((y, p.dy), (hn, p.dhn), (cn, p.dcn), (cells, p.dcells)) if g is not None]
    torch.autograd.backward(*zip(*pairs))
    return record.squares


def assert_close(got, want, rtol=1e-10):
    """A difference of two vectors, as what comes through W_hh is beside what goes past it, errs by their size."""
    assert got.dtype == F64
    assert got.shape == want.shape
    atol = rtol * float(want.max()) ** 0.5 * 1e-3
    torch.testing.assert_close(got.sqrt(), want.sqrt(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_beside_hooks(kind, sizes):
    problem = make(replace(kind, **({"H": kind.H} | sizes)))
    want = hooked(problem)
    for save in (Save.ALL, Save.STATES):
        assert_close(told(problem, save)[3][-1], want)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.variant and kind.variant.clips], ids=str)
def test_rows_that_a_clip_cut(kind):
    """To the bit, whatever threads and vectors do: what no clip has cut arrives as it was sent."""
    for sizes in ({"T": 30, "B": 16, "H": 70}, {"T": 20, "B": 1, "H": 300}):
        problem = make(replace(kind, **sizes))
        squares, want = told(problem)[3][-1], hooked(problem)
        for sent, came in ((Square.SENT_H, Square.LATER_H), (Square.SENT_C, Square.LATER_C)):
            there = want[sent] > 0
            cut = want[came] < want[sent] * (1 - 1e-12)
            assert torch.equal(there & (squares[came] < squares[sent]), cut)
            assert torch.equal(squares[came][there & ~cut], squares[sent][there & ~cut])
            if sent == Square.SENT_H or kind.cell.is_lstm:
                assert cut.any()


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("cell", [Cell.LSTM, Cell.GRU, Cell.RNN_TANH])
def test_beside_a_loop_of_cells(cell, between):
    """Without any of our own code: torch's cells, and between them (if asked) clips by value, and a zoneout that keeps
    what it does on average."""
    T, B, I, H, keep, bound = 12, 3, 5, 9, 0.25 * between, 0.5 if between else math.inf
    step = {Cell.LSTM: torch.nn.LSTMCell, Cell.GRU: torch.nn.GRUCell}.get(cell, torch.nn.RNNCell)(I, H, dtype=F64)
    variant = Variant(zoneout_h=keep, zoneout_c=keep * (cell == Cell.LSTM), clip_value=bound) if between else None
    problem = make(Case(cell, T=T, B=B, I=I, H=H, variant=variant))
    problem = replace(problem, weights=[w.detach() for w in step.parameters()])
    states = 2 if cell == Cell.LSTM else 1
    want = torch.zeros(len(Square), T, B, dtype=F64)

    def tells(which, t, value):
        def told(gradient):
            want[which, t] = gradient.square().sum(-1)

        value.register_hook(told)

    def clipped(t, s, state):
        """The state on its way out of step t."""
        tells(Square.LATER_H + s, t, state)
        state = state.view_as(state)
        tells(Square.SENT_H + s, t, state)
        state.register_hook(lambda g: g.clamp(-bound, bound))
        return state

    state, loss = [problem.h0[0], *([problem.c0[0]] if states == 2 else [])], 0
    for t, (x, dy) in enumerate(zip(problem.x, problem.dy)):
        new = step(x, tuple(state) if states == 2 else state[0])
        new = list(new) if states == 2 else [new]
        state = [keep * old + (1 - keep) * s for old, s in zip(state, new)] if between else new
        for s in range(states):
            tells(Square.H + s, t, state[s])
        loss = loss + (state[0] * dy).sum()
        if t < T - 1:
            state = [clipped(t, s, of.view_as(of)) for s, of in enumerate(state)]
    ends = zip(state, (problem.dhn[0], *([problem.dcn[0]] if states == 2 else [])))
    (loss + sum((s * d).sum() for s, d in ends)).backward()
    squares = told(problem)[3][-1][:, 0].view(len(Square), T, B)
    assert_close(squares[: Square.LATER_H], want[: Square.LATER_H])
    assert_close(squares[Square.LATER_H : Square.KEPT, :-1], want[Square.LATER_H : Square.KEPT, :-1])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_nothing_else_changes(kind):
    """Gradients are the same bits whether squares are told or not, squares whatever gradients are asked for."""
    for H in (9, 70):
        problem = make(replace(kind, H=H, T=6), torch.float32)
        y, _, _, saved = forward(problem)
        dx, dh0, dc0, (*dweights, squares) = told(problem)
        got = {"dx": dx, "dh0": dh0, "dc0": dc0} | {f"dweights[{i}]": w for i, w in enumerate(dweights)}
        assert_identical(got, backward(problem, y, saved))
        assert torch.equal(told(problem, needs=0)[3][-1], squares)


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_every_instruction_set(isa, dtype, cell):
    problem = make(Case(cell, T=8, B=17, H=77, D=2, reset="initial"), dtype)
    assert_close(told(problem)[3][-1], hooked(problem.to(F64)), rtol=32 * torch.finfo(dtype).eps)


def test_gradients_too_small_to_square():
    """In f32 the square of 1e-30 is 0."""
    problem = make(Case(Cell.RNN_TANH, T=3, B=2), torch.float32)
    problem = replace(problem, dy=problem.dy * 1e-30, dhn=None)
    assert_close(told(problem)[3][-1][:, :, 4:], hooked(problem.to(F64))[:, :, 4:], rtol=1e-5)
    assert (told(problem)[3][-1][Square.H] > 0).all()


@pytest.mark.parametrize("cell", [Cell.LSTM, Cell.GRU])
def test_not_a_number(cell):
    """It is in the norm of its own row, and in no other's."""
    problem = make(Case(cell, T=5, B=3))
    problem.dy[2, 1, 4] = float("nan")
    squares = told(problem)[3][-1].view(len(Square), 5, 3)
    assert squares[Square.H, 2, 1].isnan()
    assert squares[:, :, [0, 2]].isfinite().all()
    assert squares[:, 3:].isfinite().all()


@pytest.mark.parametrize("case", [Case(Cell.LSTM, P=4, D=2, packed=True), Case(Cell.GRU, D=2, B=0)], ids=str)
def test_opcheck(case):
    problem = make(case)
    y, _, _, saved = forward(problem)
    p = problem
    args = (p.dy, p.dhn, p.dcn, p.x, p.h0, p.c0, p.weights, y, saved, p.batch_sizes, int(p.cell), all_needs(p))
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    opcheck(torch.ops.fused_rnn.layer_backward.default, args, {"tell": True}, test_utils=utils)
    assert told(problem)[3][-1].shape == (len(Square), 2, problem.x.numel() // 5)


# Rows are shared, or units, or neither.
@pytest.mark.cpu_only("threads are the CPU's")
@pytest.mark.parametrize("sizes", [{"B": 16, "H": 130}, {"B": 1, "H": 400}, {"B": 1, "H": 9}], ids=str)
@pytest.mark.parametrize(
    "kind",
    [
        Case(Cell.LSTM, P=100),
        *(Case(cell) for cell in CELLS),
        Case(Cell.GRU, variant=Variant(clip_norm=0.5, zoneout_h=0.2)),
    ],
    ids=str,
)
def test_bits_do_not_depend_on_threads(kind, sizes, threads):
    problem = make(replace(kind, T=20, D=2, **sizes), torch.float32)
    results = []
    for n in (1, 2, 3, 4):
        threads(n)
        results.append({"squares": told(problem)[3][-1]})
    for other in results[1:]:
        assert_identical(other, results[0])
