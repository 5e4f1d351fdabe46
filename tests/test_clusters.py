"""Loops of clusters (csrc/cuda/cluster_*.h): f16, bf16 and TF32 against the reference in f64, exact where they can be,
every size of a cluster that a plan takes. On a GPU of compute capability 9.0 or later, or on the host
(``--kernels=cuda-on-host``)."""

import pytest
import torch
from devices import allow_tf32, on_cpu
from loop_cases import CELLS, Case, assert_close_in_norm, assert_exact, assert_identical, expected, forward, make, run

from fused_rnn import _C, ops
from fused_rnn.ops import Save
from fused_rnn.planning import DEVICES
from fused_rnn.reference import Cell

# Of everything in norm: some roundings of a factor, through as many steps.
BOUNDS = {torch.bfloat16: 2e-2, torch.float16: 2.5e-3, torch.float32: 2.5e-3}
DTYPES = list(BOUNDS)
SIZES_OF_CLUSTERS = (1, 2, 4, 8, 16)  # blocks
LIMITS = "FUSED_RNN_CUDA_LIMITS"
# What the pretended device has, and no other loops. On a GPU too: where there is room for all rows at once, each would
# have a block to itself, which sends nothing.
FEW = "counts=0:2:1:0:1,clusters_first=1"


@pytest.fixture(autouse=True)
def _clusters(request, monkeypatch):
    """Where there are some; with TF32 for f32."""
    if on_cpu():
        if request.config.getoption("--kernels") == "own":
            pytest.skip("the CPU has no clusters")
    elif torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs compute capability 9.0")
    monkeypatch.setenv(LIMITS, FEW)
    allow_tf32(monkeypatch)


def check(case, dtype):
    problem = make(case, dtype)
    kinks = 10 if case.cell == Cell.RNN_RELU else 1  # a sum that is rounded past zero has another gradient
    assert_close_in_norm(run(problem), expected(problem.to(torch.float64)), kinks * BOUNDS[dtype])


# Broken tiles of units and of rows, one block and several, blocks without units, slices of more than one tile of rows.
SIZES = [(15, 8), (16, 9), (17, 3), (33, 16), (40, 2), (64, 17), (70, 5), (130, 4)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_sizes(cell, dtype):
    for H, B in SIZES:
        check(Case(cell, T=4, B=B, H=H, D=1 + H % 2), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_rows_that_come_and_go(cell, dtype):
    """Other lengths, episodes: some slices begin later or end earlier than others, some rows anew."""
    for case in (
        Case(cell, T=9, B=20, H=20, D=2, packed=True),
        Case(cell, T=2, B=40, H=9, D=2, packed=True),
        Case(cell, T=7, B=10, H=18, D=2, reset="zero"),
        Case(cell, T=6, B=19, H=18, D=2, reset="initial", packed=True),
    ):
        check(case, dtype)
    if cell.is_lstm:
        check(Case(cell, T=5, B=9, H=33, cells=True), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_past_registers(dtype):
    """More of the summed dimension than a warp holds: the rest comes from shared memory."""
    check(Case(Cell.RNN_TANH, T=3, B=3, H=256), dtype)
    check(Case(Cell.GRU, T=3, B=9, H=128), dtype)
    check(Case(Cell.LSTM, T=3, B=2, H=72), dtype)
    check(Case(Cell.RNN_TANH, T=2, B=1, H=530), dtype)  # and more tiles than a warp multiplies at once


@pytest.mark.parametrize("parts", SIZES_OF_CLUSTERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_size(cell, dtype, parts, monkeypatch):
    """One tile of rows in a slice and two, of which some end early and begin anew."""
    if on_cpu() and parts in (1, 8):
        pytest.skip("the pretended device has none of this size")
    counts = [2 * (size == parts) for size in SIZES_OF_CLUSTERS]
    monkeypatch.setenv(LIMITS, f"counts={':'.join(map(str, counts))},clusters_first=1")
    of = {"cell": int(cell), "T": 6, "D": 2, "H": 40, "P": 0, "element_size": dtype.itemsize, "tensor": True}
    for B, rows in ((5, 5), (19, 16)):
        for backward in (False, True):
            device = DEVICES["h200"] | {"clusters": counts, "clusters_first": True}
            plan = _C.cuda_plan(B=B, backward=backward, clustered=True, **of, **device)
            assert (plan["mode"], plan["parts"], plan["slice_rows"]) == ("clusters", parts, rows)
        check(Case(cell, T=6, B=B, H=40, D=2, packed=True, reset="initial"), dtype)


def test_as_the_device_is(monkeypatch):
    monkeypatch.setenv(LIMITS, "clusters_first=1")
    for H, B in SIZES:
        check(Case(Cell.LSTM, T=4, B=B, H=H), torch.bfloat16)


@pytest.mark.parametrize("text", ["counts=1:2", "counts=1:2:x:0:0", "clusters=1:2", "clusters", "sms=", "blocks=1"])
def test_limits_that_are_none(text, monkeypatch):
    monkeypatch.setenv(LIMITS, text)
    with pytest.raises(RuntimeError, match=f"{LIMITS}: not understood: {text}"):
        run(make(Case(Cell.GRU), torch.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_exact(dtype, packed):
    """Small whole numbers, of which nothing is rounded: each sum has each of its terms once."""
    for B, H in ((11, 40), (1, 1)):
        assert_exact(Case(Cell.RNN_RELU, T=2, B=B, I=2, H=H, D=2, packed=packed), dtype, largest=256)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_saved_changes_nothing(dtype):
    problem = make(Case(Cell.LSTM, T=5, B=9, H=33, D=2), dtype)
    every, states, none = (forward(problem, save)[:3] for save in (Save.ALL, Save.STATES, Save.NOTHING))
    for y, hn, cn in (states, none):
        assert_identical({"y": y, "hn": hn, "cn": cn}, dict(zip(("y", "hn", "cn"), every, strict=True)))
    assert_close_in_norm(run(problem, Save.STATES), expected(problem.to(torch.float64)), BOUNDS[dtype])


def test_it_is_clusters_that_ran(monkeypatch):
    """Of two rows no other kernel multiplies f32 as TF32."""
    problem = make(Case(Cell.GRU, T=6, B=2, H=33), torch.float32)
    want = expected(problem.to(torch.float64))["y"]
    narrow = (run(problem)["y"].double() - want).abs().max()
    assert 1e-5 < narrow < 1e-2
    monkeypatch.setenv(LIMITS, "clusters=0")
    exact = (run(problem)["y"].double() - want).abs().max()
    assert exact < 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_in_its_row(dtype):
    problem = make(Case(Cell.LSTM, T=4, B=11, H=20), dtype)
    problem.x[1, 3, 0] = torch.nan
    y = run(problem)["y"]
    assert y[1:, 3].isnan().all()
    assert not y[0].isnan().any()
    assert not y[:, :3].isnan().any()
    assert not y[:, 4:].isnan().any()


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_squares(cell, monkeypatch):
    """What gradient_flow is told is what other loops tell, but for the rounding."""
    p = make(Case(cell, T=5, B=9, H=40, D=2), torch.float16)
    y, _, _, saved = forward(p)
    inputs = (p.dy, p.dhn, p.dcn, p.x, p.h0, p.c0, p.weights, y, saved, None, int(p.cell))
    told = ops.layer_backward(*inputs, 1, tell=True)[3][-1]
    monkeypatch.setenv(LIMITS, "clusters=0")
    want = ops.layer_backward(*inputs, 1, tell=True)[3][-1]
    assert (want > 0).any()
    torch.testing.assert_close(told, want, rtol=2e-2, atol=1e-4)
