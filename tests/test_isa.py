"""Every instruction set this machine can run: that the forced one runs, its results, its conversions, any threads."""

import os
import subprocess
import sys

import pytest
import test_loop
import torch
from loop_cases import (
    CELLS,
    Case,
    assert_identical,
    backward,
    backward_gates,
    forward,
    make,
)

from fused_rnn import _C
from fused_rnn.reference import Activation, Cell, Variant, gates_of

pytestmark = pytest.mark.cpu_only("instruction sets and threads are the CPU's")

ISAS = _C.cpu_isas()


def on(name, function, *args):
    _C.force_isa(name)
    try:
        return function(*args)
    finally:
        _C.force_isa("")


def test_the_best_is_chosen():
    assert ISAS[0] == "generic"
    assert _C.cpu_isa() == os.environ.get("FUSED_RNN_ISA", ISAS[-1])


def test_an_unknown_name_raises():
    before = _C.cpu_isa()
    with pytest.raises(ValueError, match=r"instruction set 'sse9' is not one this machine can run \(generic"):
        _C.force_isa("sse9")
    assert _C.cpu_isa() == before


def test_the_forced_one_runs():
    # A dot product in f32 is summed in as many parts as a vector has lanes: other last bits on each. Matrix tiles take
    # rounded factors of bf16.
    dot = make(Case(Cell.RNN_TANH, T=1, B=1, I=300, H=64), torch.float32)
    tiles = make(Case(Cell.RNN_TANH, T=8, B=16, I=300, H=64), torch.bfloat16)

    def bits():
        return torch.cat([forward(problem)[0].flatten() for problem in (dot, tiles)])

    results = {}
    for name in ISAS:
        y = on(name, bits)
        for other, seen in results.items():
            assert (y != seen).any(), f"{name} gives the bits of {other}"
        assert torch.equal(y, on(name, bits))
        results[name] = y


@pytest.mark.parametrize("name", ISAS)
def test_environment_variable(name):
    code = "import torch; from fused_rnn import ops, _C; print(_C.cpu_isa())"
    env = os.environ | {"FUSED_RNN_ISA": name}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == name


def test_environment_variable_with_an_unknown_name():
    code = "import torch; from fused_rnn import ops, _C; _C.cpu_isa()"
    env = os.environ | {"FUSED_RNN_ISA": "sse9"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.returncode != 0
    assert "ValueError: instruction set 'sse9' is not one this machine can run" in out.stderr


# ---- the tests of the loop, again on each but the best, which test_loop.py runs on -------------------


@pytest.fixture(params=ISAS[:-1])
def lesser_isa(request):
    _C.force_isa(request.param)
    yield request.param
    _C.force_isa("")


@pytest.mark.parametrize("save", test_loop.SAVES)
@pytest.mark.parametrize("case", test_loop.OPTIONS, ids=str)
def test_options(lesser_isa, case, save):
    test_loop.test_options(case, save)


@pytest.mark.parametrize("H", [1, 2, 7, 9, 17, 40])
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_tiles(lesser_isa, cell, H):
    test_loop.test_tiles(cell, H)


@pytest.mark.parametrize("P", [1, 8, 17])
def test_projected_tiles(lesser_isa, P):
    test_loop.test_projected_tiles(P)


@pytest.mark.parametrize("save", test_loop.SAVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", test_loop.EVERY_KIND[::2], ids=str)
def test_error_beside_nn(lesser_isa, kind, dtype, save):
    test_loop.test_error_beside_nn(kind, dtype, save)


# ---- the time loop's bits do not depend on the number of threads -------------------------------------

# Without x nothing but the loop can round, for a BLAS may sum in another order for another number of threads.
SPLITS = {
    "rows": Case(Cell.LSTM, T=24, B=13, I=0, H=72),
    "directions": Case(Cell.GRU, T=40, B=2, I=0, H=60, D=2),
    "units": Case(Cell.LSTM, T=20, B=1, I=0, H=330),
    "units, GRU": Case(Cell.GRU, T=20, B=3, I=0, H=310),
    "units, few": Case(Cell.LSTM, T=30, B=1, I=0, H=115),
    "units, RNN": Case(Cell.RNN_TANH, T=20, B=1, I=0, H=700),
    "units, projection": Case(Cell.LSTM, T=20, B=2, I=0, H=400, P=150),
    "units of both directions": Case(Cell.LSTM, T=20, B=1, I=0, H=330, D=2),
    "packed rows": Case(Cell.LSTM, T=24, B=13, I=0, H=72, packed=True),
    "units of a few": Case(Cell.GRU, T=20, B=6, I=0, H=900),  # enough for matrix tiles
    "packed units": Case(Cell.GRU, T=20, B=3, I=0, H=310, packed=True),
    # More than a core multiplies at once through tiles.
    "rows, many": Case(Cell.LSTM, T=6, B=230, I=0, H=300),
    "rows, reset": Case(Cell.LSTM, T=24, B=13, I=0, H=72, reset="initial"),
    "directions, reset": Case(Cell.LSTM, T=40, B=2, I=0, H=60, D=2, reset="zero"),
    "units, reset": Case(Cell.LSTM, T=20, B=3, I=0, H=330, packed=True, reset="initial"),
    "units, reset, GRU": Case(Cell.GRU, T=20, B=6, I=0, H=900, reset="zero"),
    "units, variant": Case(Cell.LSTM, T=20, B=3, I=0, H=330, variant=Variant(Activation.HARD_SIGMOID, peephole=True)),
    "units, coupled": Case(Cell.LSTM, T=20, B=1, I=0, H=430, variant=Variant(peephole=True, coupled=True)),
    "rows, variant": Case(Cell.LSTM, T=24, B=13, I=0, H=72, packed=True, variant=Variant(peephole=True)),
    "directions, variant": Case(Cell.GRU, T=40, B=2, I=0, H=60, D=2, variant=Variant(state=Activation.SOFTSIGN)),
    "rows, reset before": Case(
        Cell.GRU, T=24, B=13, I=0, H=72, packed=True, reset="initial", variant=Variant(reset_before=True)
    ),
    "units, reset before": Case(Cell.GRU, T=20, B=3, I=0, H=310, variant=Variant(reset_before=True)),
    "rows, layer norm": Case(
        Cell.LSTM, T=24, B=13, I=0, H=72, packed=True, reset="initial", variant=Variant(peephole=True, layer_norm=True)
    ),
    "units, layer norm": Case(Cell.LSTM, T=20, B=2, I=0, H=400, P=150, variant=Variant(layer_norm=True)),
    "units, layer norm, GRU": Case(Cell.GRU, T=20, B=3, I=0, H=310, reset="zero", variant=Variant(layer_norm=True)),
    "directions, layer norm": Case(Cell.RNN_TANH, T=40, B=2, I=0, H=150, D=2, variant=Variant(layer_norm=True)),
    "rows, cells": Case(Cell.LSTM, T=24, B=13, I=0, H=72, packed=True, cells=True),
    "units, cells": Case(Cell.LSTM, T=20, B=3, I=0, H=330, reset="zero", cells=True),
    "units, cells, projection": Case(Cell.LSTM, T=20, B=2, I=0, H=400, P=150, cells=True),
    "units, cells, coupled": Case(
        Cell.LSTM, T=20, B=3, I=0, H=330, variant=Variant(peephole=True, coupled=True), cells=True
    ),
    "units, reset, projection": Case(Cell.LSTM, T=20, B=2, I=0, H=400, P=150, reset="initial"),
}


def division(case, threads):
    """What the loop of f32 on this machine's best instruction set does with it."""
    G, W = gates_of(case.cell, case.variant), {"generic": 4, "avx2": 8, "avx512": 16, "amx": 16}[_C.cpu_isa()]
    blocks = -(-case.H // W)
    panels = blocks if G > 1 else -(-blocks // 4)
    weight_bytes = 4 * G * case.R * blocks * W
    flops = 2 * case.B * case.H * (G * case.R + (case.R if case.P else 0))
    return _C.divide_loop(case.D, case.B, panels, weight_bytes, case.T, flops, threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SPLITS)
def test_bits_do_not_depend_on_threads(isa, name, dtype, threads):
    case = SPLITS[name]
    planned = division(case, 4)
    assert planned["directions"] == (2 if "directions" in name else 1)
    assert (planned["row_parts"] > 1) == ("rows" in name)
    assert (planned["unit_parts"] > 1) == ("units" in name)
    problem = make(case, dtype)
    results = []
    for n in (1, 2, 3, 4, 2):
        threads(n)
        y, hn, cn, saved = forward(problem)
        # not the gradients of matrices: they are BLAS's
        if case.variant and case.variant.layer_norm:
            each = len(problem.weights) // case.D
            vectors = sum(8 << i for i in range(len(problem.weights)) if i % each >= (3 if case.P else 2))
            gradients = backward(problem, y, saved, 0b110 | vectors)
        else:
            gradients = backward_gates(problem, y, saved)
        results.append({"y": y, "hn": hn, "cn": cn, "saved": saved} | gradients)
    for other in results[1:]:
        assert_identical(other, results[0])
