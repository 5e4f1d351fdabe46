"""Gradients clipped between steps (docs/gradient_clipping.md): kernels, derivatives, and what the page promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from devices import cuda_kernels
from episodes import random_mask
from layer_cases import make_layer, scalar
from loop_cases import Case, assert_identical, assert_near, assert_same, expected, forward, make
from loop_cases import run as run_ops
from pairs import distance, flat, run
from torch.autograd import gradgradcheck
from torch.func import grad, jvp, vmap

import fused_rnn
from fused_rnn.ops import Save
from fused_rnn.reference import Cell, Variant
from fused_rnn.regularisation import clipped

VALUE, NORM = Variant(clip_value=0.2), Variant(clip_norm=0.5)
BOTH = Variant(clip_value=0.3, clip_norm=0.6)
MORE = BOTH._replace(recurrent_dropout=0.3, zoneout_h=0.3)
KINDS = {
    "lstm-value": {"cell": Cell.LSTM, "variant": VALUE},
    "lstm-norm": {"cell": Cell.LSTM, "variant": NORM},
    "lstm-proj": {"cell": Cell.LSTM, "P": 4, "variant": BOTH},
    "lstm-more": {"cell": Cell.LSTM, "P": 4, "variant": MORE._replace(zoneout_c=0.3, peephole=True), "seeded": True},
    "gru-norm": {"cell": Cell.GRU, "variant": NORM},
    "gru-more": {"cell": Cell.GRU, "variant": MORE, "seeded": True},
    "gru-before": {"cell": Cell.GRU, "variant": MORE._replace(reset_before=True), "seeded": True},
    "lstm-normed": {"cell": Cell.LSTM, "variant": BOTH._replace(layer_norm=True)},
    "tanh-both": {"cell": Cell.RNN_TANH, "variant": BOTH},
    "relu-norm": {"cell": Cell.RNN_RELU, "variant": NORM},
}
SIZES_OF_LOOPS = [
    {"T": 1, "B": 1},
    {"T": 3, "D": 2, "packed": True},  # few steps, straight from the weights
    {"T": 8, "D": 2, "packed": True, "reset": "initial"},
    {"T": 18, "B": 1, "H": 70, "P": 0, "reset": "zero"},
    {"B": 0},
]


@pytest.mark.parametrize("save", [Save.ALL, Save.STATES])
@pytest.mark.parametrize("sizes", SIZES_OF_LOOPS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_ops(kind, sizes, save):
    problem = make(Case(**{**KINDS[kind], **sizes}))
    want = expected(problem)
    assert_same(run_ops(problem, save), want, rtol=1e-9, atol=1e-10)
    if problem.x.numel():  # the bounds are felt
        free = replace(problem, variant=problem.variant._replace(clip_value=0.0, clip_norm=0.0))
        assert max(distance(expected(free)[name], want[name]) for name in ("dx", "dh0")) > 0.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_instruction_set(isa, kind, dtype):
    if dtype.itemsize == 2 and KINDS[kind]["cell"] == Cell.RNN_RELU:
        return  # its kink is at zero
    assert_near(make(Case(**KINDS[kind], T=12, B=7, H=37, reset="zero"), dtype), 24)


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_threads(kind, threads):
    """The same bits, where threads share the units of a row too."""
    for sizes in ({"B": 3, "H": 640, "T": 17}, {"B": 24, "H": 64, "T": 20, "D": 2}):
        problem, results = make(Case(**{**KINDS[kind], **sizes}), torch.float32), []
        for n in (1, 2, 3):
            threads(n)
            results.append(run_ops(problem))
            results[-1].pop("dx")  # a product of BLAS
        assert_identical(results[1], results[0])
        assert_identical(results[2], results[0])


@pytest.mark.parametrize(
    ("kind", "options"),
    [("lstm-more", {}), ("tanh-both", {"D": 2, "packed": True, "reset": "initial", "recompute": True})],
    ids=str,
)
def test_further_derivatives(kind, options):
    """Those of the clipped gradient."""
    layer = make_layer("lstm", **{**KINDS[kind], **options, "T": 3, "B": 2, "H": 3, "P": KINDS[kind].get("P", 0) and 2})
    assert gradgradcheck(layer.ours, layer.leaves(), fast_mode=True)


@pytest.mark.parametrize("kind", ["lstm-proj", "gru-more"])
def test_gradients_of_each_example(kind):
    layer = make_layer("lstm", **KINDS[kind])
    states, weights = layer.args[: layer.states], layer.args[layer.states :]
    several = [torch.stack([s * (v + 1) for v in range(3)]) for s in states]
    every, dims = tuple(range(len(layer.args))), (0,) * layer.states + (None,) * len(weights)
    got, want = (vmap(grad(scalar(f), every), dims)(*several, *weights) for f in (layer.ours, layer.theirs))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bounds", [{"clip_grad_value": 1e6}, {"clip_grad_norm": 1e6}], ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_bound_that_nothing_reaches_changes_no_derivative(kind, bounds):
    """Where gradients are zero too; of any order, forward, backward or one of the other."""
    plain = getattr(fused_rnn, kind)(2, 3, dtype=torch.float64)
    clipping = getattr(fused_rnn, kind)(2, 3, dtype=torch.float64, **bounds)
    clipping.load_state_dict(plain.state_dict())
    x, tangent = torch.randn(2, 3, 2, 2, dtype=torch.float64)

    def derivatives(module):
        def loss(x):
            return module(x)[0][:, 0].square().sum()

        def pushed(f):
            return lambda x: jvp(f, (x,), (tangent,))[1]

        def pulled(f):
            return lambda x: (grad(f)(x) * tangent).sum()

        return [
            pulled(pushed(loss))(x),
            pulled(pushed(pushed(loss)))(x),
            pushed(pushed(pushed(loss)))(x),
            pulled(pulled(pulled(loss)))(x),
        ]

    torch.testing.assert_close(derivatives(clipping), derivatives(plain), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_bound_past_the_numbers_of_a_dtype(dtype):
    module = fused_rnn.GRU(3, 4, clip_grad_value=1e39, dtype=dtype)
    x = torch.randn(3, 2, 3, dtype=dtype, requires_grad=True)
    (dx,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    dx.square().sum().backward()
    assert x.grad.isfinite().all()


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h.view_as(h)

    @staticmethod
    def backward(ctx, g):
        return g.clamp(-0.1, 0.1)


def test_by_hand():
    """A loop over time as one would write it in Python, clip and all."""
    module = fused_rnn.RNN(3, 6, bias=False, dtype=torch.float64, clip_grad_value=0.1)
    x, weights = torch.randn(7, 4, 3, dtype=torch.float64, requires_grad=True), list(module.parameters())

    def loop(x):
        h, ys = x.new_zeros(4, 6), []
        for step in x:
            h = torch.tanh(step @ weights[0].T + _Clip.apply(h) @ weights[1].T)
            ys.append(h)
        return torch.stack(ys)

    leaves = [x, *weights]
    got, want = (torch.autograd.grad(y.square().sum(), leaves) for y in (module(x)[0], loop(x)))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("bounds", [{"clip_grad_value": 0.05}, {"clip_grad_norm": 0.1}], ids=str)
def test_in_one_call_or_several(kind, bounds):
    """The same gradients; and that of a state is at most the bound and what its own step says."""
    module = getattr(fused_rnn, kind)(3, 6, dtype=torch.float64, **bounds)
    x, weights = torch.randn(9, 4, 3, dtype=torch.float64, requires_grad=True), list(module.parameters())
    whole = torch.autograd.grad(module(x)[0].square().sum() * 5, [x, *weights])
    loss, state = 0, None
    for part in x.split([4, 1, 4]):
        y, state = module(part, state)
        loss = loss + y.square().sum() * 5
    torch.testing.assert_close(torch.autograd.grad(loss, [x, *weights]), whole)
    first = [torch.randn(1, 4, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)][: 1 + (kind == "LSTM")]
    y, _ = module(x, tuple(first) if kind == "LSTM" else first[0])
    for g in torch.autograd.grad(y.square().sum() * 5, first):
        size = g.abs() if "clip_grad_value" in bounds else g.norm(dim=-1)
        (bound,) = bounds.values()
        torch.testing.assert_close(size.max(), torch.tensor(bound, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_outputs_are_those_without(kind):
    """To the last bit, and all of it where the bounds are never met (CUDA's kernels then sum up in another order)."""
    plain, clipping = getattr(fused_rnn, kind)(3, 6, 2), getattr(fused_rnn, kind)(3, 6, 2, clip_grad_norm=1e6)
    clipping.load_state_dict(plain.state_dict())
    x = torch.randn(9, 4, 3, requires_grad=True)
    assert all(map(torch.equal, flat(clipping(x)), flat(plain(x))))
    got, want = run(clipping, x, None), run(plain, x, None)
    if cuda_kernels():
        torch.testing.assert_close(got, want)
    else:
        assert all(map(torch.equal, got, want))
    mask = random_mask(x)
    clipping = getattr(fused_rnn, kind)(3, 6, 2, clip_grad_value=1e-9)
    clipping.load_state_dict(plain.state_dict())
    assert all(map(torch.equal, flat(clipping(x, reset=mask)), flat(plain(x, reset=mask))))


def test_large_numbers():
    """Squares past the range of the dtype are no zeros."""
    problem = make(Case(Cell.GRU, variant=NORM), torch.float32)
    problem = replace(problem, dy=problem.dy * 1e30, dhn=problem.dhn * 1e30)
    dh0 = run_ops(problem)["dh0"]
    torch.testing.assert_close(dh0.norm(dim=-1), torch.full((1, 3), 0.5))
    assert problem.dhn.abs().max() > 1e25
    torch.testing.assert_close(clipped(problem.dhn, 0, 0.5).norm(dim=-1), torch.full((1, 3), 0.5))
    spoilt = replace(problem, dhn=torch.full_like(problem.dhn, torch.nan))
    assert run_ops(spoilt)["dh0"].isnan().all()


def test_forward_mode_knows_no_clip():
    layer = make_layer("gru", variant=NORM)
    tangents = [torch.randn_like(a) for a in layer.args]
    free = make_layer("gru")
    got, want = (torch.func.jvp(f, layer.args, tuple(tangents))[1] for f in (layer.ours, free.ours))
    torch.testing.assert_close(got, want)


def test_what_is_refused():
    for name in ("clip_grad_value", "clip_grad_norm"):
        for value in (0, -1.0, float("nan"), "1", True):
            with pytest.raises(ValueError, match=f"{name} should be a positive number, or None"):
                fused_rnn.GRU(3, 6, **{name: value})
        module = fused_rnn.GRU(3, 6, **{name: None})
        assert module.variant is None
        assert f", {name}=0.5)" in repr(fused_rnn.LSTM(3, 6, **{name: 0.5}))
    with pytest.raises(RuntimeError, match="a bound of variant must not be negative, got -1"):
        forward(make(Case(Cell.GRU, variant=Variant(clip_norm=-1.0))))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_has_none_and_says_so():
    module, x = fused_rnn.GRU(3, 4, clip_grad_norm=0.1), torch.randn(5, 2, 3)
    with pytest.warns(torch.jit.TracerWarning, match="a trace has no clipped gradients"):
        traced = torch.jit.trace(module, x)
    torch.testing.assert_close(traced(x), module(x))


def test_what_only_outputs_matter_to():
    """Weights go to other libraries as those of a module without."""
    module = fused_rnn.GRU(3, 6, clip_grad_norm=1.0, recurrent_dropout=0.2, batch_first=True)
    fused_rnn.interchange.to_keras(module)
    with pytest.raises(ValueError, match="zoneout"):
        fused_rnn.interchange.to_keras(fused_rnn.GRU(3, 6, zoneout_h=0.1))


def test_values_of_complex_numbers_are_refused():
    """Before anything is computed; norms are theirs too."""
    rnn, x = fused_rnn.RNN(3, 4, clip_grad_value=1.0, dtype=torch.complex64), torch.ones(2, 1, 3, dtype=torch.complex64)
    with pytest.raises(TypeError, match="clip_grad_value bounds real numbers"):
        rnn(x)
    fused_rnn.RNN(3, 4, clip_grad_norm=1.0, dtype=torch.complex64)(x)[0].abs().sum().backward()
