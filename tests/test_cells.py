"""``cells=True``: c of every step of an LSTM, and the gradients that come to it.

With all other options drawn at random it is in test_differential.py, its refusals in test_errors.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from devices import device
from layer_cases import assert_close, make_layer, scalar
from loop_cases import (
    Case,
    assert_identical,
    assert_near,
    assert_same,
    backward,
    backward_gates,
    expected,
    forward,
    make,
)
from loop_cases import run as run_ops
from pairs import flat
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacrev, jvp, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
from fused_rnn import autograd
from fused_rnn.ops import Save
from fused_rnn.reference import Activation, Cell, Variant

F64 = torch.float64
T, B, I, H = 7, 4, 3, 6

# ---- the ops -----------------------------------------------------------------------------------------

PLAIN = [Case(Cell.LSTM, B=5, H=11, P=P, D=2, packed=packed, cells=True) for P in (0, 6) for packed in (False, True)]
RESET = [replace(case, reset=to) for case in PLAIN for to in ("zero", "initial")]
VARIANT = [
    replace(case, variant=variant, reset=reset)
    for case, reset in zip(PLAIN, ("", "zero", "initial", ""), strict=True)
    for variant in (Variant(state=Activation.SOFTSIGN, peephole=True), Variant(peephole=True, coupled=True))
]
EVERY_KIND = [*PLAIN, *RESET, *VARIANT]
# One row; few steps straight from the weights; packed panels; pieces of time.
SIZES = [
    {"T": 1},
    {"T": 3},
    {"T": 8},
    {"T": 9, "B": 1},
    {"T": 18, "B": 1, "H": 70},
    {"B": 0},
    {"T": 30, "B": 70, "H": 80},
]


@pytest.mark.parametrize("save", [Save.ALL, Save.STATES])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
def test_ops(kind, sizes, save):
    problem = make(replace(kind, **sizes))
    for given in (problem, replace(problem, dy=None, dhn=None, dcn=None)):
        assert_same(run_ops(given, save), expected(given), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
def test_every_instruction_set(isa, kind, dtype):
    """Within a few roundings of the truth; gradients at the wrong step err by the size of the values."""
    assert_near(make(replace(kind, T=12, B=7, H=37), dtype), 16)


@pytest.mark.parametrize("kind", PLAIN, ids=str)
def test_gates_and_layouts(kind):
    problem = make(kind)
    y, _, _, saved = forward(problem)
    whole = run_ops(problem)
    gates = backward_gates(problem, y, saved)
    assert_same({name: gates[name] for name in ("dh0", "dc0")}, {name: whole[name] for name in ("dh0", "dc0")})
    strided = torch.stack([problem.dcells] * 2, -1)[..., 0]
    assert_identical(run_ops(replace(problem, dcells=strided)), whole)
    nothing = replace(problem, dcells=torch.zeros_like(problem.dcells))
    assert_identical(run_ops(nothing), run_ops(replace(problem, dcells=None)))


def test_ops_refuse():
    problem = make(Case(Cell.LSTM, H=9, P=4, cells=True))
    y, _, _, saved = forward(problem)
    with pytest.raises(RuntimeError, match=r"layer_backward: dcells must have shape \[7, 3, 9\]"):
        backward(replace(problem, dcells=y), y, saved)
    gru = make(Case(Cell.GRU))
    y, _, _, saved = forward(gru)
    with pytest.raises(RuntimeError, match="layer_backward: dcells is for an LSTM only"):
        backward(replace(gru, dcells=y), y, saved)


# ---- derivatives -------------------------------------------------------------------------------------

OPTIONS = [
    {"D": 1},
    {"D": 2, "packed": True, "recompute": True},
    {"D": 2, "reset": "initial", "bias": False},
    {"packed": True, "reset": "zero"},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
each_kind = pytest.mark.parametrize("kind", ["lstm", "lstm-proj"])


@each_option
@each_kind
def test_derivatives(kind, options):
    layer = make_layer(kind, T=3, B=2, H=3, cells=True, **options)
    checks = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(layer.ours, layer.leaves(), fast_mode=True, **checks)
    checks = {"check_fwd_over_rev": True, "check_rev_over_rev": True, "check_batched_grad": True}
    assert gradgradcheck(layer.ours, layer.leaves(), fast_mode=True, **checks)


@each_option
@each_kind
def test_each_output_alone(kind, options):
    """Of c alone, and with nothing from it."""
    layer = make_layer(kind, cells=True, **options)
    leaves = layer.leaves()
    for ours, theirs in zip(layer.ours(*leaves), layer.theirs(*leaves), strict=True):
        every = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        assert_close(*(torch.autograd.grad(output.sum(), leaves, **every) for output in (ours, theirs)))


def _mapped(layer, size: int):
    """``size`` examples for each argument that is no weight."""
    rows = 0 if layer.batch_sizes is not None else 1
    dims = (rows, 1, 1)
    several = [torch.stack([a * (v + 1) for v in range(size)], dim) for a, dim in zip(layer.args, dims, strict=False)]
    return (*several, *layer.args[3:]), (*dims, *[None] * (len(layer.args) - 3))


TRANSFORMS = {
    "vmap": lambda f, layer: _map(f, layer),
    "vmap of grad": lambda f, layer: _map(grad(scalar(f), (0, 1, 2, 3)), layer),
    "vmap of grad of every weight": lambda f, layer: _map(grad(scalar(f), tuple(range(len(layer.args)))), layer),
    "vmap over weights": lambda f, layer: vmap(lambda w: f(*layer.args[:3], w, *layer.args[4:]))(
        torch.stack([layer.args[3], 2 * layer.args[3]])
    ),
    "jvp": lambda f, layer: jvp(f, layer.args, tuple(a.sin() for a in layer.args)),
    "jacrev": lambda f, layer: jacrev(f, (1, 3))(*layer.args),
    "grad of vmap of grad": lambda f, layer: grad(
        lambda w: sum(g.square().sum() for g in _map(grad(scalar(f), (0, 2, 4)), _with_weight(layer, w)))
    )(layer.args[4]),
}


def _map(f, layer):
    args, dims = _mapped(layer, 3)
    return vmap(f, dims)(*args)


def _with_weight(layer, weight):
    return replace(layer, args=(*layer.args[:4], weight, *layer.args[5:]))


@each_option
@pytest.mark.parametrize("name", TRANSFORMS)
@each_kind
def test_transforms(kind, name, options):
    layer = make_layer(kind, cells=True, **options)
    assert_close(TRANSFORMS[name](layer.ours, layer), TRANSFORMS[name](layer.theirs, layer), 1e-9)


# ---- the modules -------------------------------------------------------------------------------------


def lstm(**options) -> fused_rnn.LSTM:
    return fused_rnn.LSTM(I, H, **{"dtype": F64, **options})


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("proj_size", [0, 2])
def test_they_are_the_last_ones_of_what_came_so_far(proj_size, dtype):
    """Forward of the steps up to there, in reverse of those from there on."""
    ours = lstm(proj_size=proj_size, bidirectional=True, dtype=dtype)
    x = torch.randn(T, B, I, dtype=dtype)
    hx = torch.randn(2, B, proj_size or H, dtype=dtype), torch.randn(2, B, H, dtype=dtype)
    (y, c), (hn, cn) = ours(x, hx, cells=True)
    assert (c.shape, c.dtype) == ((T, B, 2 * H), dtype)
    assert c.is_contiguous()
    assert_close([y, hn, cn], flat(ours(x, hx)), 0)
    tolerance = 8 * torch.finfo(dtype).eps
    for t in range(T):
        assert_close(c[t, :, :H], ours(x[: t + 1], hx)[1][1][0], tolerance)
        assert_close(c[t, :, H:], ours(x[t:], hx)[1][1][1], tolerance)


@pytest.mark.parametrize("form", ["batch_first", "unbatched", "packed", "unsorted"])
def test_forms_of_input(form):
    """In the layout of the output; of a stack those of the last layer."""
    ours = lstm(num_layers=2, bidirectional=True, batch_first=form == "batch_first")
    last = fused_rnn.LSTM(2 * H, H, bidirectional=True, dtype=F64)
    first = lstm(bidirectional=True)
    for name, weight in ours.state_dict().items():
        (last if "_l1" in name else first).state_dict()[name.replace("_l1", "_l0")].copy_(weight)
    x = torch.randn(T, I, dtype=F64) if form == "unbatched" else torch.randn(T, B, I, dtype=F64)
    if form in ("packed", "unsorted"):
        numbers = [7, 5, 5, 2] if form == "packed" else [5, 7, 2, 5]
        x = pack_padded_sequence(x, numbers, enforce_sorted=form == "packed")
    (y, c), state = ours(x.transpose(0, 1) if form == "batch_first" else x, cells=True)
    (want_y, want), _ = last(first(x)[0], cells=True)
    if isinstance(x, PackedSequence):
        assert isinstance(c, PackedSequence)
        assert all(a is b for a, b in zip(c[1:], y[1:], strict=True))
        y, c, want_y, want = y.data, c.data, want_y.data, want.data
    elif form == "batch_first":
        y, c = y.transpose(0, 1), c.transpose(0, 1)
    assert_close([y, c], [want_y, want])
    assert len(state) == 2


def test_what_a_step_left_before_it_is_cleared():
    ours = lstm()
    x, reset = torch.randn(T, B, I, dtype=F64), torch.rand(T, B) < 0.5
    (_, c), (_, cn) = ours(x, reset=reset, cells=True)
    assert_close(c[-1], cn[0], 0)
    assert_close(c[0], ours(x[:1])[1][1][0])
    assert c.ne(0).all()


@pytest.mark.parametrize("recompute", [False, True])
def test_they_may_be_written_to(recompute):
    """As they are a copy: the backward has its own."""
    ours = lstm(recompute=recompute)
    x = torch.randn(T, B, I, dtype=F64, requires_grad=True)
    loss = [ours(x, cells=True)[0][1].pow(2).sum(), ours(x, cells=True)[0][1].pow_(2).sum()]
    assert_close(*(torch.autograd.grad(value, [x, *ours.parameters()]) for value in loss), 0)


def test_what_is_kept_for_them():
    """Nothing, where they are not asked for; in inference the states alone."""
    layer = make_layer("lstm", T=6)
    saves, run = [], autograd.ops.layer_forward

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autograd.ops, "layer_forward", lambda *args: saves.append(args[6]) or run(*args))
        for cells in (False, True):
            case = replace(layer, case=replace(layer.case, cells=cells))
            case.ours(*layer.args)
            case.ours(*layer.leaves())
    assert saves == [Save.NOTHING, Save.ALL, Save.STATES, Save.ALL]


def test_under_autocast():
    ours, x = lstm(dtype=torch.float32), torch.randn(T, B, I)
    with torch.autocast(device().type, dtype=torch.bfloat16):
        (y, c), _ = ours(x, cells=True)
    assert y.dtype == c.dtype == torch.bfloat16


def test_without_kernels():
    ours = lstm(num_layers=2, bidirectional=True, dtype=torch.complex128)
    x = torch.randn(T, B, I, dtype=torch.complex128)
    (y, c), (hn, cn) = ours(x, cells=True)
    want, state = ours(x)
    assert_close([y, hn, cn], [want, *state])
    assert_close(c[-1, :, :H], cn[2])


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_compiled(packed):
    ours = lstm(bidirectional=True)
    torch._dynamo.reset()

    def loss(x):
        return sum((i + 1) * output.sin().sum() for i, output in enumerate(flat(ours(x, cells=True))))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for numbers in ([9, 7, 7, 2], [11, 5, 4, 4, 3]):
            x = torch.randn(numbers[0], len(numbers), I, dtype=F64)
            x = pack_padded_sequence(x, numbers) if packed else x
            weights = list(ours.parameters())
            assert_close(*(torch.autograd.grad(f(x), weights) for f in (compiled, loss)))
    torch._dynamo.reset()


def test_exported():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = lstm(bidirectional=True)

        def forward(self, x):
            return flat(self.net(x, cells=True))

    net, sizes = Net(), {0: torch.export.Dim("T", min=2, max=100), 1: torch.export.Dim("B", min=2, max=100)}
    program = torch.export.export(net, (torch.randn(T, B, I, dtype=F64),), dynamic_shapes=(sizes,))
    x = torch.randn(T + 2, B + 3, I, dtype=F64)
    assert_close(list(program.module()(x)), net(x))


def test_a_function():
    ours, x = lstm(num_layers=2), torch.randn(T, B, I, dtype=F64)
    got = fused_rnn.functional.lstm(x, None, list(ours.parameters()), num_layers=2, cells=True)
    assert_close(flat(got), flat(ours(x, cells=True)), 0)
