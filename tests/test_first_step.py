"""A state of zeros, whose products at the first step are not made: the results are those of making them."""

from dataclasses import replace

import pytest
import torch
from devices import device
from loop_cases import (
    CELLS,
    Case,
    all_needs,
    assert_close_in_norm,
    assert_identical,
    assert_same,
    backward,
    expected,
    forward,
    make,
    run,
)
from pairs import agree, pair

from fused_rnn.ops import Save
from fused_rnn.reference import Cell, Variant

DH0 = 2  # of the bits that say which gradients are needed
# One step and several, a batch of whole matrix tiles and others, weights as they lie, packed, and past a cache.
SIZES = [
    {"T": 1, "B": 16, "I": 3, "H": 5},
    {"T": 1, "B": 64, "I": 40, "H": 130},
    {"T": 3, "B": 33, "I": 7, "H": 130},
    {"T": 3, "B": 64, "I": 65, "H": 50},
    {"T": 20, "B": 70, "I": 5, "H": 65},
    {"T": 3, "B": 17, "I": 20, "H": 500},
]
KINDS = [Case(cell, D=2, packed=packed) for cell in CELLS for packed in (False, True)]
KINDS += [
    Case(Cell.LSTM, D=2, P=6),
    Case(Cell.GRU, D=2, reset="zero"),
    Case(Cell.LSTM, D=2, reset="initial", packed=True),
    Case(Cell.GRU, D=2, variant=Variant(reset_before=True)),
    Case(Cell.LSTM, D=2, variant=Variant(layer_norm=True)),
    Case(Cell.LSTM, D=2, variant=Variant(recurrent_dropout=0.3), seeded=True),
    Case(Cell.GRU, D=2, variant=Variant(zoneout_h=0.3), seeded=True),
    Case(Cell.RNN_TANH, D=2, variant=Variant(clip_norm=0.1)),
]


def from_zero(problem, value=0.0):
    """-0.0 is not all bits 0: from there everything is multiplied."""
    states = {"h0": torch.full_like(problem.h0, value)}
    if problem.c0 is not None:
        states["c0"] = torch.zeros_like(problem.c0)
    return replace(problem, **states)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_as_if_all_were_multiplied(kind, size, isa):
    problem = make(replace(kind, **size))
    for save in (Save.ALL, Save.STATES):
        got, multiplied = (run(from_zero(problem, value), save) for value in (0.0, -0.0))
        assert_same(got, multiplied, rtol=1e-12, atol=1e-12)
        for name in ("y", "hn", "cn"):
            assert torch.equal(got[name], multiplied[name]), name
    assert_same(got, expected(from_zero(problem)))


@pytest.fixture(params=[(torch.float32, "highest"), (torch.float32, "high"), (torch.bfloat16, ""), (torch.float16, "")])
def dtype(request):
    dtype, precision = request.param
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision or before)
    yield dtype
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS[:8], ids=str)
def test_in_narrower_dtypes(kind, size, dtype):
    problem = make(replace(kind, **size), dtype)
    got, multiplied = (run(from_zero(problem, value)) for value in (0.0, -0.0))
    for name in ("y", "hn", "cn"):
        assert torch.equal(got[name], multiplied[name]), name
    # The same terms in other groups.
    assert_close_in_norm(got, {k: v.double() for k, v in multiplied.items()}, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_nothing_else_depends_on_whether_dh0_is_wanted(kind, size, dtype):
    problem = from_zero(make(replace(kind, **size), dtype))
    y, _, _, saved = forward(problem)
    with_it, without = (backward(problem, y, saved, all_needs(problem) & ~none) for none in (0, DH0))
    with_it["dh0"] = without["dh0"]
    assert_identical(with_it, without)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS[:8], ids=str)
def test_weights_that_zero_does_not_silence(kind, size, value):
    problem = from_zero(make(replace(kind, **size)))
    for k in range(0, len(problem.weights), len(problem.weights) // 2):
        problem.weights[k + 1][-1, -1] = value
        want = expected(problem)
        assert want["y"].isnan().any()
        assert_same(run(problem), want)
        problem.weights[k + 1][-1, -1] = 0.1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS[:8:2], ids=str)
def test_gradients_that_zero_does_not_silence(kind, size, value):
    problem = make(replace(kind, **size))
    for t in (0, -1):  # the first step of either direction
        spoiled = replace(problem, dy=problem.dy.clone())
        spoiled.dy[t] = value
        got, multiplied = (run(from_zero(spoiled, state)) for state in (0.0, -0.0))
        assert got["dweights[1]" if t == 0 else "dweights[5]"].isnan().any()
        assert_same(got, multiplied)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_state_of_almost_zeros(cell, size):
    problem = from_zero(make(Case(cell, D=2, **size)))
    problem.h0[-1, -1, -1] = 1.0
    assert_same(run(problem), expected(problem))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_modules_without_a_state(kind, size):
    theirs, ours = pair(kind, size["I"], size["H"], 2, bidirectional=True, dtype=torch.float64, device=device())
    agree(theirs, ours, torch.randn(size["T"], size["B"], size["I"], dtype=torch.float64, device=device()))
