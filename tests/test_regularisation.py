"""Recurrent regularisation (docs/regularisation.md): kernels and derivatives of recurrent dropout and zoneout against
the reference, and the random numbers themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from layer_cases import assert_close, make_layer, scalar
from loop_cases import Case, assert_identical, assert_near, assert_same, backward_gates, expected, forward, make
from loop_cases import run as run_ops
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

from fused_rnn.ops import Save
from fused_rnn.philox import Draw, happens, philox
from fused_rnn.reference import Activation, Cell, Variant

BOTH = Variant(zoneout_h=0.4, zoneout_c=0.3)
ALL = Variant(recurrent_dropout=0.4, zoneout_h=0.3, zoneout_c=0.5)
TIED = ALL._replace(peephole=True, coupled=True, gate=Activation.SOFTSIGN)
OF_H = Variant(recurrent_dropout=0.4, zoneout_h=0.3)
DROPS = Variant(recurrent_dropout=0.5)
KINDS = {
    "lstm-drops": {"cell": Cell.LSTM, "variant": DROPS},
    "lstm-zones": {"cell": Cell.LSTM, "variant": BOTH},
    "lstm-c": {"cell": Cell.LSTM, "variant": Variant(zoneout_c=0.5, peephole=True)},
    "lstm-tied": {"cell": Cell.LSTM, "variant": TIED},
    "lstm-all-proj": {"cell": Cell.LSTM, "P": 2, "variant": ALL},
    "lstm-tied-proj": {"cell": Cell.LSTM, "P": 2, "variant": TIED},
    "gru-drops": {"cell": Cell.GRU, "variant": DROPS},
    "gru-all": {"cell": Cell.GRU, "variant": OF_H._replace(state=Activation.SOFTSIGN)},
    "tanh-zones": {"cell": Cell.RNN_TANH, "variant": Variant(zoneout_h=0.3)},
    "relu-all": {"cell": Cell.RNN_RELU, "variant": OF_H},
    "gru-before": {"cell": Cell.GRU, "variant": OF_H._replace(reset_before=True)},
    "lstm-normed": {"cell": Cell.LSTM, "variant": TIED._replace(layer_norm=True)},
    "lstm-normed-proj": {"cell": Cell.LSTM, "P": 2, "variant": ALL._replace(layer_norm=True)},
    "tanh-normed": {"cell": Cell.RNN_TANH, "variant": OF_H._replace(layer_norm=True)},
}
SEEDED = [False, True]  # expectations, or what is drawn


# ---- the numbers -------------------------------------------------------------------------------------


def test_philox():
    """The known answers that come with the authors' Random123."""
    answers = [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, -1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0_A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, words in answers:
        got = philox(tuple(torch.tensor(word) for word in counter), torch.tensor(key))
        assert tuple(map(int, got)) == words


def test_chances():
    """As often as they should, independently of each other; never and always too."""
    h, c, never, always = happens(torch.randint(2**62, (40,)), 50, 60, Draw.ZONEOUT, (0.3, 0.7, 0.0, 1.0))
    assert h.shape == (50, 40, 60)
    assert not never.any()
    assert always.all()
    values = [m.double() for m in (h, c)]
    for m, p in zip(values, (0.3, 0.7), strict=True):
        assert abs(m.mean() - p) < 0.005
        for dim in ((1, 2), (0, 2), (0, 1)):  # no step, row or unit is special
            assert (m.mean(dim) - p).abs().max() < 0.06
    other = happens(torch.randint(2**62, (40,)), 50, 60, Draw.RECURRENT_DROPOUT, (0.3,))[0].double()
    pairs = [(values[0], values[1]), (values[0], other), (values[0][1:], values[0][:-1])]
    pairs += [(values[0][:, 1:], values[0][:, :-1]), (values[0][..., 1:], values[0][..., :-1])]
    for a, b in pairs:
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.02


# ---- the ops -----------------------------------------------------------------------------------------

SIZES_OF_LOOPS = [
    {"T": 1, "B": 1},
    {"T": 1, "reset": "zero"},
    {"T": 3, "D": 2, "packed": True},  # few steps, straight from the weights
    {"T": 8, "D": 2, "packed": True, "reset": "initial"},
    {"T": 18, "B": 1, "H": 70, "bias": False, "reset": "zero"},
    {"T": 20, "B": 8, "H": 20, "D": 2, "packed": True},
    {"B": 0},
]


@pytest.mark.parametrize("save", [Save.ALL, Save.STATES])
@pytest.mark.parametrize("sizes", SIZES_OF_LOOPS, ids=str)
@pytest.mark.parametrize("seeded", SEEDED)
@pytest.mark.parametrize("kind", KINDS)
def test_ops(kind, seeded, sizes, save):
    problem = make(Case(**{**KINDS[kind], **sizes}, seeded=seeded))
    assert_same(run_ops(problem, save), expected(problem), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["lstm-tied-proj", "gru-all"])
def test_pieces_of_time(kind):
    problem = make(Case(**KINDS[kind], T=36, B=110, H=80, I=3, D=2, packed=True, reset="initial", seeded=True))
    want = expected(problem)
    for save in (Save.ALL, Save.STATES):
        assert_same(run_ops(problem, save), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_instruction_set(isa, kind, dtype):
    """Within a few roundings of the truth; a mask taken wrong errs by the size of the values."""
    problem = make(
        Case(**KINDS[kind], T=12, B=7, H=37, reset="zero", seeded=True, cells=KINDS[kind]["cell"].is_lstm), dtype
    )
    if dtype.itemsize == 2 and problem.cell == Cell.RNN_RELU:
        return  # its kink is at zero
    # Rows that are normalised pass on larger roundings where they vary little.
    assert_near(problem, 24 * (8 if KINDS[kind]["variant"].layer_norm else 1))


@pytest.mark.cpu_only("threads are the CPU's")
@pytest.mark.parametrize("kind", ["lstm-drops", "lstm-zones", "lstm-tied-proj", "gru-all", "relu-all"])
def test_any_number_of_threads(kind, threads):
    """The same bits: rows, units and directions may be shared as they like."""
    for sizes in ({"B": 1, "H": 640, "T": 9}, {"B": 24, "H": 128, "T": 20, "D": 2}):
        problem, results = make(Case(**{**KINDS[kind], **sizes}, seeded=True), torch.float32), []
        for n in (1, 2, 3):
            threads(n)
            results.append(run_ops(problem))
        assert_identical(results[1], results[0])
        assert_identical(results[2], results[0])


@pytest.mark.parametrize("kind", KINDS)
def test_rates_at_the_ends(kind):
    """Never is the plain cell, always keeps the old state; NaN that is dropped or not kept goes no further."""
    problem = make(Case(**KINDS[kind], D=2, packed=True, seeded=True))
    rates = {"recurrent_dropout": 0.0, "zoneout_h": 0.0, "zoneout_c": 0.0}
    never = replace(problem, variant=problem.variant._replace(**rates))
    assert_identical(run_ops(never), run_ops(replace(never, seed=None)))
    always = replace(
        problem,
        variant=problem.variant._replace(
            **{name: 1.0 for name in rates if problem.cell.is_lstm or name != "zoneout_c"}
        ),
    )
    for seed in (problem.seed, None):
        problem = replace(always, seed=seed)
        got = run_ops(problem)
        assert_same(got, expected(problem))
        assert_close(got["hn"], problem.h0)
        assert not got["dx"].any()
        spoilt = replace(problem, x=torch.full_like(problem.x, torch.nan))
        got = run_ops(spoilt)
        assert_same(got, expected(spoilt))
        assert torch.equal(got["hn"], problem.h0)
    dropped = make(Case(**{**KINDS[kind], "variant": Variant(recurrent_dropout=1.0)}, seeded=True))
    weights = list(dropped.weights)
    weights[1] = torch.full_like(weights[1], torch.inf)
    y = forward(dropped)[0]
    h0 = torch.full_like(dropped.h0, torch.nan)
    if not dropped.cell.is_gru:  # whose gate z lets h by
        assert torch.equal(forward(replace(dropped, h0=h0))[0], y)


def test_a_row_and_its_seed():
    """What is drawn for a row depends on its seed alone, not on its place or on the other rows."""
    problem = make(Case(Cell.LSTM, B=5, T=9, D=2, variant=ALL, seeded=True))
    order = torch.tensor([3, 0, 4, 1])
    rows = {name: getattr(problem, name)[:, order] for name in ("x", "h0", "c0", "dy", "dhn", "dcn", "seed")}
    some, every = run_ops(replace(problem, **rows)), run_ops(problem)
    for name in ("y", "hn", "cn", "dx", "dh0", "dc0"):
        assert_close(some[name], every[name][:, order])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not KINDS[kind]["variant"].layer_norm])
def test_gates(kind):
    problem = make(Case(**KINDS[kind], T=12, D=2, seeded=True))
    y, _, _, saved = forward(problem)
    gates, whole = backward_gates(problem, y, saved), run_ops(problem)
    for name in ("dh0", "dc0"):
        assert torch.equal(gates[name], whole[name])
    G = len(problem.weights[0])
    assert_close(gates["dgx"][:, :G].T @ problem.x.flatten(0, 1), whole["dweights[0]"])


def test_ops_refuse():
    problem = make(Case(Cell.GRU, variant=OF_H, seeded=True))
    for seed, text in (
        (problem.seed.int(), "seed must be an int64 tensor"),
        (problem.seed[:, 1:], r"seed must have shape \[1, 3\], got \[1, 2\]"),
    ):
        with pytest.raises(RuntimeError, match=f"layer_forward: {text}"):
            forward(replace(problem, seed=seed))
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(RuntimeError, match=r"layer_forward: a rate of variant must be in \[0, 1\], got"):
            forward(replace(problem, variant=Variant(zoneout_h=wrong)))
    with pytest.raises(RuntimeError, match="only the LSTM has a c to zone out"):
        forward(replace(problem, variant=BOTH))


# ---- derivatives -------------------------------------------------------------------------------------

OPTIONS = [
    {"packed": True, "recompute": True},
    {"D": 2, "bias": False, "reset": "initial"},
    {"reset": "zero", "recompute": True, "seeded": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_first_derivatives(kind, options):
    cells = KINDS[kind]["cell"].is_lstm
    layer = make_layer("lstm", **{**KINDS[kind], "seeded": True, "cells": cells, **options})
    assert gradcheck(layer.ours, layer.leaves(), fast_mode=True)


@pytest.mark.parametrize(
    ("kind", "options"), list(zip(["lstm-all-proj", "gru-all", "relu-all"], OPTIONS, strict=True)), ids=str
)
def test_further_derivatives(kind, options):
    layer = make_layer("lstm", **{**KINDS[kind], "seeded": True, **options, "T": 3, "B": 2, "H": 3})
    assert gradcheck(layer.ours, layer.leaves(), fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(layer.ours, layer.leaves(), fast_mode=True)


@pytest.mark.parametrize("options", [{}, {"D": 2, "recompute": True}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_each_example(kind, options):
    """A row has the same masks in all examples, however they are folded."""
    layer = make_layer("lstm", **{**KINDS[kind], "seeded": True, **options})
    states, weights = layer.args[: layer.states], layer.args[layer.states :]
    several = [torch.stack([s * (v + 1) / 4 for v in range(3)]) for s in states]
    every = tuple(range(len(layer.args)))
    dims = (0,) * layer.states + (None,) * len(weights)
    got, want = (vmap(grad(scalar(f), every), dims)(*several, *weights) for f in (layer.ours, layer.theirs))
    assert_close(got, want, 1e-9)
    mapped = [torch.stack([w * (v + 1) / 3 for v in range(3)]) for w in weights]
    got, want = (vmap(scalar(f))(*several, *mapped) for f in (layer.ours, layer.theirs))
    assert_close(got, want)
