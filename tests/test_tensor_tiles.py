"""f32 as TF32 in CUDA's general loop (csrc/cuda/tiles.h), where torch's RNNs may take it too: against the reference in
f64, exact where it can be. On a GPU, or on the host (``--kernels=cuda-on-host``)."""

from dataclasses import replace

import pytest
import torch
from devices import allow_tf32, cuda_kernels, device
from loop_cases import CELLS, Case, assert_close_in_norm, assert_exact, expected, make, run

from fused_rnn import ops
from fused_rnn.ops import Save
from fused_rnn.reference import Activation, Cell, Variant

BOUND = 2.5e-3  # of everything in norm: some roundings of a factor to 11 bits, through as many steps


@pytest.fixture(autouse=True)
def _general(monkeypatch):
    if not cuda_kernels():
        pytest.skip("the CPU's kernels have no TF32")
    monkeypatch.setenv("FUSED_RNN_CUDA_LIMITS", "clusters=0")
    allow_tf32(monkeypatch)


def check(case: Case, save: Save = Save.ALL) -> None:
    """Within TF32's error, and not within f32's: it is that tile which ran."""
    problem = make(case, torch.float32)
    want, got = expected(problem.to(torch.float64)), run(problem, save)
    kinks = 10 if case.cell == Cell.RNN_RELU else 1  # a sum that is rounded past zero has another gradient
    assert_close_in_norm(got, want, kinks * BOUND)
    error = (got["y"].double() - want["y"]).norm() / want["y"].norm()
    assert error > 3e-6 or case.B <= 2


# Broken tiles of rows, of units and of the summed dimension; one tile and several; pieces of 16 bytes and none.
SIZES = [(1, 3), (7, 16), (8, 17), (9, 4), (33, 5), (40, 20)]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_sizes(cell):
    for H, B in SIZES:
        check(Case(cell, T=3, B=B, H=H, D=1 + H % 2))


@pytest.mark.parametrize("limits", ["sms=1,shared=14800", "cooperative=0"])
def test_plans(limits, monkeypatch):
    """Weights that do not stay, chunks of the summed dimension; a launch a step."""
    monkeypatch.setenv("FUSED_RNN_CUDA_LIMITS", f"clusters=0,{limits}")
    check(Case(Cell.LSTM, T=3, B=5, H=70, P=9))
    check(Case(Cell.GRU, T=3, B=18, H=40, D=2, packed=True))


OPTIONS = {
    "packed": Case(Cell.LSTM, B=6, D=2, packed=True, cells=True),
    "projected": Case(Cell.LSTM, B=5, H=19, P=7, D=2),
    "episodes": Case(Cell.GRU, B=5, reset="initial", packed=True),
    "reset before": Case(Cell.GRU, B=5, H=20, variant=Variant(reset_before=True)),
    "peephole": Case(Cell.LSTM, B=5, variant=Variant(Activation.SOFTSIGN, peephole=True, coupled=True)),
    "dropout": Case(Cell.LSTM, B=5, variant=Variant(recurrent_dropout=0.3, zoneout_h=0.2), seeded=True),
    "layer norm": Case(Cell.LSTM, B=17, H=20, variant=Variant(layer_norm=True)),
    "layer norm, projected": Case(Cell.LSTM, B=5, H=20, P=8, variant=Variant(layer_norm=True)),
    "clipped": Case(Cell.GRU, B=5, H=20, variant=Variant(clip_value=0.5, clip_norm=1.0)),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    for save in (Save.ALL, Save.STATES):
        check(replace(OPTIONS[name], T=4), save)


@pytest.mark.parametrize("packed", [False, True])
def test_exact(packed):
    """Small whole numbers, of which nothing is rounded: each sum has each of its terms once."""
    assert_exact(Case(Cell.RNN_RELU, T=2, B=19, I=2, H=40, D=2, packed=packed), torch.float32, largest=1024)


def test_factors_that_are_not_finite():
    """They spread as they do in f32: along their rows."""
    problem = make(Case(Cell.RNN_RELU, T=3, B=19, H=20), torch.float32)
    problem.h0[0, 3, 5], problem.h0[0, 17, 0] = torch.nan, torch.inf
    y = run(problem)["y"]
    rows = torch.arange(19, device=device())
    others = (rows != 3) & (rows != 17)
    assert y[0, 3].isnan().all()
    assert not y[0, 17].isfinite().all()
    assert y[:, others].isfinite().all()


def test_only_where_it_may(monkeypatch):
    problem = make(Case(Cell.GRU, B=5, H=33), torch.float32)
    want = expected(problem.to(torch.float64))["y"]
    narrow = (run(problem)["y"].double() - want).abs().max()
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    monkeypatch.setattr(ops, "splits_f32", lambda x: False)
    exact = (run(problem)["y"].double() - want).abs().max()
    assert exact < 1e-6 < 1e-5 < narrow < 1e-2
