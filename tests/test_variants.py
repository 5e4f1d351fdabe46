"""Variants of the cells (docs/variants.md): their kernels and derivatives against the reference, and the way there.

Bits on any number of threads are tested with the others in test_isa.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from layer_cases import assert_close, make_layer, scalar
from loop_cases import Case, Problem, assert_near, assert_same, backward, backward_gates, expected, forward, make
from loop_cases import run as run_ops
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

import fused_rnn
from fused_rnn import reference
from fused_rnn.ops import Save
from fused_rnn.reference import Activation as A
from fused_rnn.reference import Cell, Variant

NAMES = ["sigmoid", "hard_sigmoid", "tanh", "hard_tanh", "relu", "softsign", "identity"]

# Every activation once as a gate's and once as a state's; what grows without bound beside what does not.
PAIRS = [
    Variant(A.HARD_SIGMOID, A.HARD_TANH),
    Variant(A.SOFTSIGN, A.OWN),
    Variant(A.OWN, A.SOFTSIGN),
    Variant(A.TANH, A.RELU),
    Variant(A.HARD_TANH, A.SIGMOID),
    Variant(A.RELU, A.HARD_SIGMOID),
    Variant(A.IDENTITY, A.TANH),
    Variant(A.SIGMOID, A.IDENTITY),
]
LSTMS = [
    *PAIRS,
    Variant(peephole=True),
    Variant(A.HARD_SIGMOID, A.SOFTSIGN, peephole=True),
    Variant(coupled=True),
    Variant(A.SOFTSIGN, A.HARD_TANH, peephole=True, coupled=True),
    Variant(layer_norm=True),
    Variant(A.SOFTSIGN, A.OWN, peephole=True, coupled=True, layer_norm=True),
]
GRUS = [
    *PAIRS,
    Variant(reset_before=True),
    Variant(A.HARD_SIGMOID, A.SOFTSIGN, reset_before=True),
    Variant(A.OWN, A.SOFTSIGN, layer_norm=True),
]
STATES = [A.HARD_SIGMOID, A.SIGMOID, A.HARD_TANH, A.SOFTSIGN, A.IDENTITY]
KINDS = {
    f"{cell.name.lower()}{'-proj' * bool(P)}-{''.join(str(int(n)) for n in variant)}": {
        "cell": cell,
        "P": P,
        "variant": variant,
    }
    for cell, P, several in (
        (Cell.LSTM, 0, LSTMS),
        (Cell.LSTM, 2, [LSTMS[0], *LSTMS[-4:]]),
        (Cell.GRU, 0, GRUS),
        (Cell.RNN_TANH, 0, [*(Variant(state=state) for state in STATES), Variant(layer_norm=True)]),
    )
    for variant in several
}
SOME = [name for i, name in enumerate(KINDS) if i % 4 == 0 or any(KINDS[name]["variant"][2:])]


def problem_of(kind: str, dtype: torch.dtype = torch.float64, **options) -> Problem:
    """Gates without a bound make a state grow, and 16 bits may round an output over a kink, after which no rule holds
    for gradients: small values there."""
    problem = make(Case(**{**KINDS[kind], **options}), dtype)
    if dtype.itemsize == 2 or KINDS[kind]["variant"].gate in (A.RELU, A.IDENTITY):
        smaller = {name: getattr(problem, name) / 8 for name in ("x", "h0")}
        smaller |= {"weights": [w / 4 for w in problem.weights]}
        smaller |= {} if problem.c0 is None else {"c0": problem.c0 / 8}
        problem = replace(problem, **smaller)
    return problem


# ---- the ops -----------------------------------------------------------------------------------------

SIZES_OF_LOOPS = [
    {"T": 1, "B": 1},
    {"T": 3, "D": 2},  # few steps, straight from the weights
    {"T": 8, "D": 2, "packed": True, "reset": "initial"},
    {"T": 18, "B": 1, "H": 70, "P": 0, "bias": False, "reset": "zero"},
    {"T": 20, "B": 8, "H": 20, "D": 2, "packed": True},
    {"B": 0},
]


@pytest.mark.parametrize("save", [Save.ALL, Save.STATES])
@pytest.mark.parametrize("sizes", SIZES_OF_LOOPS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_ops(kind, sizes, save):
    problem = problem_of(kind, **sizes)
    assert_same(run_ops(problem, save), expected(problem), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", SOME)
def test_pieces_of_time(kind):
    problem = problem_of(kind, T=36, B=110, H=80, I=3, D=2, packed=True, reset="initial")
    want = expected(problem)
    for save in (Save.ALL, Save.STATES):
        assert_same(run_ops(problem, save), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_instruction_set(isa, kind, dtype):
    """Within a few roundings of the truth."""
    variant = KINDS[kind]["variant"]
    if dtype.itemsize == 2 and A.RELU in (variant.gate, variant.state):
        return  # its kink is at zero
    problem = problem_of(kind, dtype, T=12, B=7, H=37, reset="zero")
    # Rows that are normalised pass on larger roundings where they vary little.
    assert_near(problem, 24 * (8 if variant.layer_norm else 1))


@pytest.mark.parametrize("name", NAMES)
def test_special_values(isa, name):
    """Saturation, both infinities, NaN, zero of both signs: as the definition has them."""
    x = torch.tensor([-torch.inf, -1e30, -50.0, -3.0, -1.0, -0.0, 0.0, 1.0, 3.0, 50.0, 1e30, torch.inf, torch.nan])
    x = torch.cat([x, torch.linspace(-8, 8, 51)])
    definition, _ = reference.activations(Cell.LSTM, Variant(A[name.upper()]))
    for dtype in (torch.float64, torch.float32):
        cells = x.to(dtype).view(1, 1, -1)  # an RNN of W_ih = 1 and no state
        ours = fused_rnn.RNN(1, 1, nonlinearity=name, bias=False, batch_first=True, dtype=dtype)
        with torch.no_grad():
            ours.weight_ih_l0.fill_(1)
            ours.weight_hh_l0.zero_()
        for steps in (cells.transpose(0, 2), torch.cat([cells.transpose(0, 2)] * 2, 1)):
            got = ours(steps)[0][:, 0, 0]
            torch.testing.assert_close(got, definition(x.to(dtype)), equal_nan=True)


def test_ops_refuse():
    problem = make(Case(Cell.GRU))
    for numbers, text in (
        ((9,), "variant holds no activation 9"),
        ((0.5,), "variant holds no activation 0.5"),
        ((-1,), "variant holds no activation -1"),
        ((float("nan"),), "variant holds no activation nan"),
        ((0, 0, 2), "an option of variant must be 0 or 1, got 2"),
        ((*[0] * 30, 3), "variant has 3.* at place 30, which means nothing here"),
    ):
        with pytest.raises(RuntimeError, match=f"layer_forward: {text}"):
            forward(replace(problem, variant=numbers))
    with pytest.raises(RuntimeError, match="only the LSTM has peepholes and coupled gates"):
        forward(replace(problem, variant=(0, 0, 1)))
    with pytest.raises(RuntimeError, match="weights must hold 3 to 6 tensors for each direction, got 2"):
        forward(replace(make(Case(Cell.LSTM, bias=False)), variant=(0, 0, 1)))
    with pytest.raises(RuntimeError, match="only the LSTM has peepholes and coupled gates"):
        forward(replace(problem, variant=(0, 0, 0, 1)))
    with pytest.raises(RuntimeError, match="with the reset gate before the product nothing is normalised"):
        forward(replace(problem, variant=(0, 0, 0, 0, 1, 1)))
    peephole = make(Case(Cell.LSTM, variant=Variant(peephole=True)))
    with pytest.raises(RuntimeError, match=r"w_ch must have shape \[27\], got \[26\]"):
        forward(replace(peephole, weights=[*peephole.weights[:-1], peephole.weights[-1][1:]]))
    for other in (Cell.LSTM, Cell.RNN_TANH):
        with pytest.raises(RuntimeError, match="only the GRU has a reset gate"):
            forward(replace(make(Case(other)), variant=(0, 0, 0, 0, 1)))
    with pytest.raises(RuntimeError, match="an RNN has no gates"):
        forward(replace(make(Case(Cell.RNN_RELU)), variant=(1,)))


def test_ops_refuse_to_normalise():
    normed = make(Case(Cell.LSTM, variant=Variant(layer_norm=True)))
    for k, text in enumerate(
        (r"ln_ih must have shape \[36\]", r"ln_hh must", r"ln_ch must have shape \[9\]", "the shift")
    ):
        cut = list(normed.weights)
        cut[k - 4] = cut[k - 4][1:]
        with pytest.raises(RuntimeError, match=text):
            forward(replace(normed, weights=cut))
    y, _, _, saved = forward(normed)
    with pytest.raises(RuntimeError, match="layer_backward_gates: of normalised products it knows no gradients"):
        backward_gates(normed, y, saved)


def test_the_standard_by_its_number():
    """An activation that a cell has anyway, asked for by number: the same values."""
    for cell, numbers in ((Cell.LSTM, (1, 3)), (Cell.GRU, (1, 3, 0, 0)), (Cell.RNN_RELU, (0, 5)), (Cell.GRU, ())):
        problem = make(Case(cell, D=2))
        got, want = run_ops(replace(problem, variant=numbers)), run_ops(problem)
        assert_same(got, want, rtol=1e-13, atol=1e-13)


def test_peepholes_by_hand():
    """The equations of Gers and Schmidhuber, a number at a time."""
    problem = make(Case(Cell.LSTM, T=4, B=1, I=2, H=1, bias=False, variant=Variant(peephole=True)))
    w_ih, w_hh, (p_i, p_f, p_o) = problem.weights
    h, c = problem.h0[0, 0], problem.c0[0, 0]
    y = forward(problem)[0]
    for x, shown in zip(problem.x[:, 0], y[:, 0], strict=True):
        i, f, g, o = w_ih @ x + w_hh @ h
        c = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(g)
        h = torch.sigmoid(o + p_o * c) * torch.tanh(c)
        torch.testing.assert_close(shown, h)


def test_the_reset_gate_before_by_hand():
    """The equations of Cho et al., a number at a time."""
    problem = make(Case(Cell.GRU, T=4, B=1, I=2, H=1, variant=Variant(reset_before=True)))
    w_ih, w_hh, b_ih, b_hh = problem.weights
    h = problem.h0[0, 0]
    y = forward(problem)[0]
    for x, shown in zip(problem.x[:, 0], y[:, 0], strict=True):
        (x_r, x_z, x_n), (h_r, h_z, _) = w_ih @ x + b_ih, w_hh @ h + b_hh
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + w_hh[2] @ (r * h) + b_hh[2])
        h = (1 - z) * n + z * h
        torch.testing.assert_close(shown, h)


def test_normalisation_by_hand():
    """A unit's step from statistics by their definition."""
    problem = make(Case(Cell.LSTM, T=3, B=1, I=2, H=2, variant=Variant(layer_norm=True)))
    w_ih, w_hh, b_ih, b_hh, *gains, shift = problem.weights
    h, c = problem.h0[0, 0], problem.c0[0, 0]

    def normal(row, gain):
        mean = sum(row) / len(row)
        return gain * (row - mean) / (sum((row - mean) ** 2) / len(row) + 1e-5) ** 0.5

    y = forward(problem)[0]
    for x, shown in zip(problem.x[:, 0], y[:, 0], strict=True):
        i, f, g, o = (normal(w_ih @ x, gains[0]) + b_ih + normal(w_hh @ h, gains[1]) + b_hh).view(4, 2)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(normal(c, gains[2]) + shift)
        torch.testing.assert_close(shown, h)


def test_coupled_gates_are_a_choice_of_the_others():
    """i = 1 - f = sigmoid(-x): an LSTM of four gates computes the same."""
    coupled = make(Case(Cell.LSTM, T=9, B=4, P=3, D=2, packed=True, variant=Variant(coupled=True)))
    whole = replace(coupled, variant=None, weights=list(coupled.weights))
    H = coupled.c0.shape[-1]
    for i, w in enumerate(coupled.weights):
        if len(w) == 3 * H:
            whole.weights[i] = torch.cat([-w[:H], w])
    assert_same(run_outputs(coupled), run_outputs(whole))
    gradients = expected(coupled)
    for name in ("dx", "dh0", "dc0"):
        assert_close(run_ops(whole)[name], gradients[name])


def run_outputs(problem: Problem) -> dict[str, torch.Tensor]:
    return dict(zip(("y", "hn", "cn"), forward(problem), strict=False))


# ---- derivatives -------------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"D": 2, "packed": True, "recompute": True},
    {"D": 2, "bias": False, "reset": "initial", "recompute": True},
    {"packed": True, "reset": "zero"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_first_derivatives(kind, options):
    layer = make_layer("lstm", **{**KINDS[kind], **options})
    assert gradcheck(layer.ours, layer.leaves(), fast_mode=bool(options))


@pytest.mark.parametrize(
    ("kind", "options"),
    list(zip(SOME, OPTIONS * len(SOME), strict=False)),
    ids=str,
)
def test_further_derivatives(kind, options):
    layer = make_layer("lstm", **{**KINDS[kind], **options, "T": 3, "B": 2, "H": 3})
    assert gradcheck(layer.ours, layer.leaves(), fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(layer.ours, layer.leaves(), fast_mode=True)


@pytest.mark.parametrize("kind", [name for name, options in KINDS.items() if options["variant"].layer_norm])
def test_third_derivatives_of_what_is_normalised(kind):
    """Which those of torch's own layer_norm are not, nor are its second ones after forward mode."""
    layer = make_layer("lstm", **{**KINDS[kind], "T": 2, "B": 2, "H": 3})

    def first(*leaves):
        return torch.autograd.grad(scalar(layer.ours)(*leaves), leaves, create_graph=True)

    assert gradgradcheck(first, layer.leaves(), fast_mode=True)
    inputs = tuple(layer.args)
    along = tuple(torch.randn_like(value) for value in inputs)

    def pushed(*inputs):
        return torch.func.jvp(scalar(layer.ours), inputs, along)[1]

    every = tuple(range(len(inputs)))
    forward_first = torch.func.grad(pushed, every)(*inputs)
    reverse_first = torch.func.jvp(torch.func.grad(scalar(layer.ours), every), inputs, along)[1]
    torch.testing.assert_close(forward_first, reverse_first)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_each_example(kind, options):
    layer = make_layer("lstm", **{**KINDS[kind], **options})
    if layer.reset is not None or layer.batch_sizes is not None:
        layer.case, layer.reset = replace(layer.case, reset=""), None
    states, weights = layer.args[: layer.states], layer.args[layer.states :]
    several = [torch.stack([s * (v + 1) / 4 for v in range(3)]) for s in states]
    weights = tuple(w / 2 for w in weights)
    every = tuple(range(len(layer.args)))
    dims = (0,) * layer.states + (None,) * len(weights)
    got, want = (vmap(grad(scalar(f), every), dims)(*several, *weights) for f in (layer.ours, layer.theirs))
    assert_close(got, want, 1e-9)
    mapped = [torch.stack([w * (v + 1) / 3 for v in range(3)]) for w in weights]
    got, want = (vmap(scalar(f))(*several, *mapped) for f in (layer.ours, layer.theirs))
    assert_close(got, want)


@pytest.mark.parametrize("kind", SOME)
def test_each_weight_alone(kind):
    problem = problem_of(kind, D=2, T=8)
    y, _, _, saved = forward(problem)
    whole = backward(problem, y, saved)
    for i in range(len(problem.weights)):
        alone = backward(problem, y, saved, 1 << (3 + i))
        assert torch.equal(alone[f"dweights[{i}]"], whole[f"dweights[{i}]"])
        assert sum(g.numel() for g in alone.values()) == problem.weights[i].numel()
    if not problem.variant.layer_norm:
        assert torch.equal(backward_gates(problem, y, saved)["dh0"], whole["dh0"])
