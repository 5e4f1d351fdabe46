"""f32 products through AMX tiles, each factor as two bf16 (``torch.set_float32_matmul_precision``): error, hard values,
what is left alone, when the setting is read."""

from dataclasses import replace

import pytest
import torch
from devices import on_cpu
from loop_cases import (
    CELLS,
    Case,
    all_needs,
    assert_close_in_norm,
    assert_identical,
    backward,
    backward_gates,
    expected,
    forward,
    make,
    run,
)
from torch.export import export
from torch.library import opcheck

import fused_rnn
from fused_rnn import _C, ops
from fused_rnn.reference import Cell

pytestmark = [
    pytest.mark.cpu_only("matrix tiles are the CPU's"),
    pytest.mark.skipif(_C.cpu_isa() != "amx" or not on_cpu(), reason="needs matrix tiles (AMX)"),
]

# Of one product, in norm. Two bf16 keep 2^-17 of a factor; with the product of both rests left out, 5e-6 was measured.
BOUND = 1e-5


@pytest.fixture(autouse=True)
def _precision():
    narrow = torch.backends.mkldnn.matmul
    before = torch.get_float32_matmul_precision(), narrow.fp32_precision
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before[0])
    narrow.fp32_precision = before[1]


def at(precision, function, *args):
    torch.set_float32_matmul_precision(precision)
    try:
        return function(*args)
    finally:
        torch.set_float32_matmul_precision("high")


# ---- error -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("B", [5, 33, 100])
@pytest.mark.parametrize(("I", "H"), [(17, 17), (64, 64), (100, 100), (1, 64), (32, 1)])
def test_each_product(I, H, B):
    # One step of a linear RNN, so that every result is a product or a sum of two.
    problem = replace(make(Case(Cell.RNN_LINEAR, T=1, B=B, I=I, H=H, bias=False), torch.float32), dhn=None)
    exact = expected(problem.to(torch.float64))
    assert_close_in_norm(run(problem), exact, BOUND)
    assert not torch.equal(run(problem)["y"], at("highest", run, problem)["y"])


CASES = [
    Case(cell, T=T, B=B, I=I, H=H, P=P, D=D, packed=packed)
    for cell in CELLS
    for T, B, I, H, P, D, packed in (
        (5, 33, 17, 17, 0, 1, False),
        (9, 5, 33, 64, 0, 2, True),
        (12, 100, 45, 64, 0, 2, False),
        (7, 33, 100, 100, 0, 1, False),
        (70, 110, 40, 90, 0, 1, False),  # several chunks
        (6, 33, 64, 100, 30, 2, True),
        (200, 1, 17, 64, 0, 2, False),  # the products around the loop alone
    )
    if not P or cell == Cell.LSTM
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers(case):
    problem = make(case, torch.float32)
    exact = expected(problem.to(torch.float64))
    got, plain = run(problem), at("highest", run, problem)
    assert_close_in_norm(got, {name: exact[name] for name in ("y", "hn", "cn")}, BOUND)
    if case.cell != Cell.RNN_RELU:  # at its kink a rounding turns a gradient on or off
        assert_close_in_norm(got, exact, 2 * BOUND)  # several products one after the other
    for name in ("y", "dx", "dweights[0]", "dweights[1]"):
        assert not torch.equal(got[name], plain[name]), name


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_single_unit(cell):
    # Sums of one or a few products that cancel: no bound but 2^(24 - 17) times the error of f32 itself.
    problem = make(Case(cell, T=3, B=33, I=5, H=1), torch.float32)
    exact = expected(problem.to(torch.float64))
    plain = at("highest", run, problem)
    for name, value in run(problem).items():
        error, theirs = ((t[name].double() - exact[name]).norm() for t in ({name: value}, plain))
        assert error <= 2**7 * theirs + BOUND * exact[name].norm(), name


def test_opcheck():
    problem = make(Case(Cell.LSTM, T=9, B=5, I=17, H=17), torch.float32)
    p, (y, _, _, saved) = problem, forward(problem)
    inputs = (p.x, p.h0, p.c0, p.weights)
    gradients = (p.dy, p.dhn, p.dcn, *inputs, y, saved, None, int(p.cell))
    utils = ("test_schema", "test_faketensor")
    opcheck(torch.ops.fused_rnn.layer_forward.default, (*inputs, None, int(p.cell), True, True), test_utils=utils)
    opcheck(torch.ops.fused_rnn.layer_backward.default, (*gradients, all_needs(p), True), test_utils=utils)
    opcheck(torch.ops.fused_rnn.layer_backward_gates.default, (*gradients, True), test_utils=utils)


def test_gates():
    case = Case(Cell.GRU, T=9, B=33, I=17, H=40, D=2)
    problem = make(case, torch.float32)
    y, _, _, saved = forward(problem)
    whole, gates = backward(problem, y, saved), backward_gates(problem, y, saved)
    assert_identical({"dh0": gates["dh0"]}, {"dh0": whole["dh0"]})
    plain = at("highest", backward_gates, problem, y, saved)
    assert_close_in_norm(gates, {name: t.double() for name, t in plain.items()}, 2 * BOUND)


# ---- what is left alone ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES[::5], ids=str)
def test_highest_is_plain_f32(case):
    problem = make(case, torch.float32)
    results = at("highest", run, problem)
    _C.force_isa("avx512")
    try:
        assert_identical(results, at("highest", run, problem))
    finally:
        _C.force_isa("")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_types(dtype):
    problem = make(CASES[1], dtype)
    assert_identical(run(problem), at("highest", run, problem))


def test_medium_is_high():
    problem = make(CASES[1], torch.float32)
    assert_identical(at("medium", run, problem), run(problem))


@pytest.mark.parametrize("case", [Case(Cell.LSTM, T=99, B=1, I=0, H=64), Case(Cell.GRU, T=6, B=2, I=0, H=512)], ids=str)
def test_not_where_it_is_slower(case):
    # The loop of one row a step, and more weights than a few rows pay for. (Products of x are then BLAS's own affair.)
    problem = make(case, torch.float32)
    for got, plain in zip(forward(problem), at("highest", forward, problem), strict=True):
        assert torch.equal(got, plain)


# ---- threads -----------------------------------------------------------------------------------------

SPLITS = {
    "rows": Case(Cell.LSTM, T=24, B=45, I=33, H=72),
    "packed rows": Case(Cell.GRU, T=24, B=45, I=33, H=72, packed=True),
    "directions": Case(Cell.GRU, T=40, B=4, I=70, H=90, D=2),
    "units": Case(Cell.LSTM, T=30, B=6, I=50, H=400),
    "units, projection": Case(Cell.LSTM, T=30, B=6, I=50, H=400, P=150),
}


@pytest.mark.parametrize("name", SPLITS)
def test_bits_do_not_depend_on_threads(name, threads):
    problem, results = make(SPLITS[name], torch.float32), []
    for n in (1, 2, 3, 4, 2):
        threads(n)
        results.append(run(problem))
    for other in results[1:]:
        assert_identical(other, results[0])
    assert not torch.equal(results[0]["y"], at("highest", run, problem)["y"])


# ---- hard values -------------------------------------------------------------------------------------

FACTORS = torch.tensor([1.0, -1.0, 0.3, -1.00390625, 0.125, 0.0])
LARGEST = torch.finfo(torch.float32).max


def products(values):
    """Each value times each factor: [factors, values], the value in the left operand, then in the right."""

    def linear(rows, columns):
        x, h0 = rows.view(1, -1, 1), torch.zeros(1, len(rows), len(columns))
        weights = [columns.view(-1, 1), torch.zeros(len(columns), len(columns))]
        return ops.layer_forward(x, h0, None, weights, None, Cell.RNN_LINEAR, False)[0][0]

    return linear(values, FACTORS).T, linear(FACTORS, values)


def test_infinite_and_nan():
    values = torch.tensor([torch.inf, -torch.inf, torch.nan] * 2)
    for got in products(values):
        torch.testing.assert_close(got, FACTORS[:, None] * values, rtol=0, atol=0, equal_nan=True)
    both = torch.tensor([torch.inf, -torch.inf]).repeat(8)
    x, h0 = both.view(1, -1, 1), torch.zeros(1, len(both), 1)
    y = ops.layer_forward(x, h0, None, [torch.full((1, 1), -torch.inf), h0[0, :1]], None, Cell.RNN_LINEAR, False)[0]
    assert torch.equal(y.flatten(), -both)


def test_large_values_stay_finite():
    # From 3.3895e38 on the nearest bf16 is infinity.
    values = torch.tensor([1e30, 3.38e38, 3.3895313e38, 3.3895315e38, 3.3961775e38, 3.4e38, LARGEST, -LARGEST])
    fitting = FACTORS.abs() <= 1
    for got in products(values):
        want = FACTORS[:, None].double() * values
        assert ((got - want).abs() <= 2**-15 * want.abs())[fitting].all()
        assert got[3, -2:].equal(torch.tensor([-torch.inf, torch.inf]))


def test_small_values_lose_less_than_the_smallest_normal():
    tiny = torch.finfo(torch.float32).tiny
    values = torch.cat([torch.rand(4000) * 2.0 ** -torch.arange(100, 140).repeat(100), torch.tensor([tiny, 1e-45])])
    for got in products(values):
        want = FACTORS[:, None].double() * values
        assert ((got - want).abs() <= 2**-15 * want.abs() + 2 * tiny).all()
        normal = want.abs() >= 2.0**-110
        assert ((got - want).abs() <= 2**-15 * want.abs())[normal].all()


@pytest.mark.parametrize("cell", [Cell.LSTM, Cell.GRU], ids=str)
def test_finite_where_plain_f32_is(cell):
    problem = make(Case(cell, T=9, B=33, I=17, H=40), torch.float32)
    x = problem.x
    x[2, 3, 0], x[2, 4, 1], x[3, 5], x[4, 6, 2] = torch.inf, -torch.inf, LARGEST, torch.nan
    problem.h0[0, 7, 3], problem.dy[5, 8, 2] = torch.inf, torch.nan
    got, plain = run(problem), at("highest", run, problem)
    for name in plain:
        assert torch.equal(got[name].isfinite(), plain[name].isfinite()), name
    assert got["y"].isfinite().any()
    assert not got["y"].isfinite().all()


# ---- when the setting is read ------------------------------------------------------------------------


def test_forward_and_backward_read_it_when_they_run():
    net = fused_rnn.LSTM(33, 64)
    x = torch.randn(9, 33, 33)

    def gradients(forward_at, backward_at):
        y = at(forward_at, net, x)[0]
        return at(backward_at, torch.autograd.grad, y.sum(), net.weight_hh_l0)[0]

    assert not torch.equal(gradients("high", "high"), gradients("high", "highest"))
    assert not torch.equal(gradients("high", "high"), gradients("highest", "high"))
    assert torch.equal(gradients("highest", "highest"), gradients("highest", "highest"))


def test_the_switch_for_cpu_products_alone():
    problem = make(CASES[1], torch.float32)
    split, plain = run(problem), at("highest", run, problem)
    torch.set_float32_matmul_precision("highest")
    for precision, want in (("tf32", split), ("ieee", plain), ("bf16", split)):
        torch.backends.mkldnn.matmul.fp32_precision = precision
        assert_identical(run(problem), want)


@pytest.mark.parametrize("train", [False, True])
def test_a_compiled_layer_follows(train):
    torch._dynamo.reset()
    net, x = fused_rnn.LSTM(33, 64), torch.randn(9, 33, 33)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")

    def result(function):
        if train:
            return torch.autograd.grad(function(x)[0].sum(), net.weight_hh_l0)[0]
        with torch.no_grad():
            return function(x)[0]

    try:
        for precision in ("highest", "high", "highest", "medium"):
            assert torch.equal(*(at(precision, result, function) for function in (compiled, net))), precision
    finally:
        torch._dynamo.reset()


def test_an_exported_layer_keeps_it():
    net, x = fused_rnn.GRU(33, 64).eval(), torch.randn(9, 33, 33)
    for precision, other in (("high", "highest"), ("highest", "high")):
        exported = at(precision, export, net, (x,)).module()
        assert torch.equal(at(other, exported, x)[0], at(precision, net, x)[0])
