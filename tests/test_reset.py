"""``reset=``: episodes that begin inside of sequences, through ops and modules.

Its derivatives of every order are tested with the others (test_gradcheck.py, test_transforms.py), its bits on any
number of threads in test_isa.py, its refusals in test_errors.py, all of it with other options in test_differential.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from episodes import BySteps, Masked, random_mask
from loop_cases import CELLS, Case, assert_identical, assert_near, assert_same, backward_gates, expected, forward, make
from loop_cases import run as run_ops
from pairs import KINDS, agree, distance, flat, largest_of, pair, run
from torch import nn
from torch.fx import symbolic_trace
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
from fused_rnn.ops import Save
from fused_rnn.reference import Cell

TO = ["zero", "initial"]
T, B, I, H = 9, 4, 3, 6


def states(kind: str, *shape: int, **options) -> torch.Tensor | tuple[torch.Tensor, ...]:
    h, c = (torch.randn(*shape, **options) for _ in "hc")
    return (h, c) if kind == "LSTM" else h


# ---- the ops -----------------------------------------------------------------------------------------

EVERY_KIND = [
    Case(cell, B=5, H=11, P=P, D=2, packed=packed, reset=to)
    for cell, P in [*((c, 0) for c in CELLS), (Cell.LSTM, 6)]
    for packed in (False, True)
    for to in TO
]


# One row; few steps straight from the weights; packed panels.
SIZES = [
    {"T": 1},
    {"T": 3},
    {"T": 8},
    {"T": 1, "B": 1},
    {"T": 9, "B": 1},
    {"T": 18, "B": 1, "H": 70},
    {"B": 0},
]


@pytest.mark.parametrize("save", [Save.ALL, Save.STATES])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
def test_ops(kind, sizes, save):
    problem = make(replace(kind, **sizes))
    assert_same(run_ops(problem, save), expected(problem), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
def test_pieces_of_time(kind):
    """Two backward, several forward."""
    problem = make(replace(kind, T=36, B=110, H=80 if kind.cell.gates > 1 else 200))
    want = expected(problem)
    for save in (Save.ALL, Save.STATES):
        assert_same(run_ops(problem, save), want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
def test_every_instruction_set(isa, kind, dtype):
    """Within a few roundings of the truth; a mask taken wrong errs by the size of the values."""
    assert_near(make(replace(kind, T=12, B=7, H=37), dtype), 16)


@pytest.mark.parametrize("kind", EVERY_KIND[::2], ids=str)
def test_no_episode_is_no_mask(kind):
    for sizes in SIZES:
        problem = make(replace(kind, **sizes), torch.float32)
        without = replace(problem, reset=None)
        problem = replace(problem, reset=torch.zeros_like(problem.reset))
        for save in (Save.ALL, Save.STATES):
            assert_identical(run_ops(problem, save), run_ops(without, save))


@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
def test_gates_and_layouts(kind):
    problem = make(replace(kind, T=12))
    y, _, _, saved = forward(problem)
    strided = torch.stack([problem.reset] * 2, -1)[..., 0]
    moved = problem.reset.movedim(0, -1).contiguous().movedim(-1, 0)
    for reset in (strided, moved):
        other = replace(problem, reset=reset)
        assert_identical(run_ops(other), run_ops(problem))
        assert_identical(backward_gates(other, y, saved), backward_gates(problem, y, saved))


def test_ops_refuse():
    problem = make(Case(Cell.GRU, reset="zero"))
    for reset, text in ((problem.reset.int(), "be a bool tensor"), (problem.reset.T, r"have shape \[7, 3\]")):
        with pytest.raises(RuntimeError, match=f"layer_forward: reset must {text}"):
            forward(replace(problem, reset=reset))


# ---- the modules -------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_against_single_steps(kind, bidirectional, dtype, to):
    theirs, ours = pair(kind, I, H, 2, bidirectional=bidirectional, dtype=dtype)
    x = torch.randn(T, B, I, dtype=dtype, requires_grad=True)
    hx = states(kind, 2 * (1 + bidirectional), B, H, dtype=dtype, requires_grad=True)
    mask = random_mask(x)
    for recompute in (False, True):
        ours.recompute = recompute
        agree(BySteps(theirs, mask, to), Masked(ours, mask, to), x, hx)


@pytest.mark.parametrize("form", ["batch_first", "unbatched", "packed", "unsorted"])
@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("kind", KINDS)
def test_forms_of_input(kind, to, form):
    options = {"batch_first": form == "batch_first", "bidirectional": True, "dtype": torch.float64}
    theirs, ours = pair(kind, I, H, 2, **options)
    rows = [] if form == "unbatched" else [B]
    x = torch.randn(T, *rows, I, dtype=torch.float64, requires_grad=True)
    if form in ("packed", "unsorted"):
        lengths = [9, 7, 7, 2] if form == "packed" else [2, 7, 9, 7]
        x = pack_padded_sequence(x, lengths, enforce_sorted=form == "packed")
    elif form == "batch_first":
        x = x.detach().transpose(0, 1).requires_grad_()
    hx = states(kind, 4, *rows, H, dtype=torch.float64, requires_grad=True)
    mask = random_mask(x)
    for given in (hx, None):
        agree(BySteps(theirs, mask, to), Masked(ours, mask, to), x, given)


@pytest.mark.parametrize("kind", KINDS)
def test_episodes_at_every_step(kind):
    """They are sequences of one step each, in either direction."""
    _, ours = pair(kind, I, H, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    y, _ = ours(x, reset=torch.ones(T, B, dtype=torch.bool))
    torch.testing.assert_close(y, torch.cat([ours(step)[0] for step in x.split(1)]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_final_states_are_not_cleared(kind):
    """Those of the last step, whatever is marked: what begins at step 0 leaves the reverse direction's as it is."""
    _, ours = pair(kind, I, H, bidirectional=True, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    mask = torch.zeros(T, B, dtype=torch.bool)
    mask[0] = True
    assert all(torch.equal(a, b) for a, b in zip(flat(ours(x, reset=mask)), flat(ours(x)), strict=True))
    hx = states(kind, 2, B, H, dtype=torch.float64)
    plain = flat(ours(x, hx))
    zero, initial = (flat(ours(x, hx, reset=mask, reset_to=to)) for to in TO)
    assert all(torch.equal(a, b) for a, b in zip(initial, plain, strict=True))
    for got, want in zip(zero[1:], plain[1:], strict=True):
        assert torch.equal(got[1], want[1])
        assert not torch.equal(got[0], want[0])


@pytest.mark.parametrize("steps", [3, 9])
@pytest.mark.parametrize(("kind", "options"), [*((kind, {}) for kind in KINDS), ("LSTM", {"proj_size": 2})])
def test_nothing_passes(kind, options, steps):
    """A state that is not a number is replaced, not multiplied by zero; no gradient comes back, nor from NaN."""
    _, ours = pair(kind, I, H, bidirectional=True, **options)
    clean = torch.randn(steps, B, I)
    spoilt = clean.clone()
    spoilt[1, 2] = float("nan")
    mask = torch.zeros(steps, B, dtype=torch.bool)
    mask[1:3, 2] = True  # an episode of one step
    outputs, gradients = [], []
    for x in (clean, spoilt):
        leaf = x.requires_grad_()
        y, _ = ours(leaf, reset=mask)
        outputs.append(y.detach())
        gradients.append(torch.autograd.grad(y.sum(), leaf)[0])
    others = torch.ones(steps, B, dtype=torch.bool)
    others[1, 2] = False
    assert outputs[1][1, 2].isnan().all()
    for got in (outputs, gradients):
        assert torch.equal(got[0][others], got[1][others])
    x = clean.detach().requires_grad_()
    (dx,) = torch.autograd.grad(ours(x, reset=mask)[0][2, 2].sum(), x)
    assert dx[2, 2].all()
    assert not dx[:2].any()


@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_initial_state(kind, to):
    """From every episode, or from the first one alone."""
    _, ours = pair(kind, I, H, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    hx = states(kind, 1, B, H, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(T, B, dtype=torch.bool)
    mask[5, 0], mask[0, 1] = True, True
    y, _ = ours(x, hx, reset=mask, reset_to=to)
    for dh in torch.autograd.grad(y[5:].sum(), [hx] if kind != "LSTM" else hx):
        assert dh[0, 0].any() == (to == "initial")
        assert dh[0, 1].any() == (to == "initial")
        assert dh[0, 2:].any()


def test_a_mask_changed_before_the_backward_raises():
    _, ours = pair("GRU", I, H)
    x = torch.randn(T, B, I)
    mask = random_mask(x)
    y, _ = ours(x, reset=mask)
    mask.logical_not_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_dropout_between_layers():
    """The same masks of dropout from the same seed, with and without episodes."""
    _, ours = pair("GRU", I, H, 2, dropout=0.5)
    x = torch.randn(T, B, I)
    results = []
    for reset in (None, torch.zeros(T, B, dtype=torch.bool)):
        torch.manual_seed(3)
        results.append(ours(x, reset=reset)[0])
    assert torch.equal(*results)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind):
    theirs, ours = pair(kind, I, H, 2)
    x = torch.randn(T, B, I)
    mask = random_mask(x)
    exact = run(BySteps(theirs, mask, "zero").double(), x.double(), None)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(Masked(ours, mask, "zero"), x, None)
    for a, b in zip(got, exact, strict=True):
        assert distance(a, b) <= 0.05 * largest_of([b])


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_functions(kind):
    name, *nonlinearity = kind.split("_")
    module = getattr(fused_rnn, name.upper())(I, H, 2, *nonlinearity)
    x = torch.randn(T, B, I)
    mask, hx = random_mask(x), states(name.upper(), 2, B, H)
    for to in TO:
        options = {"reset": mask, "reset_to": to}
        got = getattr(fused_rnn.functional, kind)(x, hx, list(module.parameters()), num_layers=2, **options)
        assert all(torch.equal(a, b) for a, b in zip(flat(got), flat(module(x, hx, **options)), strict=True))


class TestWithoutKernels:
    """torch's own functions know no reset: what has no kernels goes through the reference."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_complex(self, kind):
        _, ours = pair(kind, I, H, 2, bidirectional=True, dtype=torch.complex128)
        x = torch.randn(T, B, I, dtype=torch.complex128)
        got = ours(x, reset=torch.zeros(T, B, dtype=torch.bool))
        torch.testing.assert_close(flat(got), flat(ours(x)))
        y, _ = ours(x, reset=torch.ones(T, B, dtype=torch.bool))
        torch.testing.assert_close(y, torch.cat([ours(step)[0] for step in x.split(1)]))

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    def test_a_trace_that_may_be_trained(self):
        _, ours = pair("GRU", I, H)
        x = torch.randn(T, B, I)
        mask = random_mask(x)
        traced = torch.jit.trace(Masked(ours, mask, "zero"), x, check_trace=False)
        weights = list(ours.parameters())
        got, want = (torch.autograd.grad(f(x)[0].sum(), weights) for f in (traced, Masked(ours, mask, "zero")))
        torch.testing.assert_close(got, want)


def test_a_node_of_a_graph():
    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = fused_rnn.GRU(I, H)

        def forward(self, x, begins):
            return self.net(x, reset=begins, reset_to="initial")[0]

    policy, x = Policy(), torch.randn(T, B, I)
    mask = random_mask(x)
    graph = symbolic_trace(policy)
    assert [node.op for node in graph.graph.nodes].count("call_module") == 1
    assert torch.equal(graph(x, mask), policy(x, mask))


@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled(kind, packed, to):
    _, ours = pair(kind, I, H, 2, bidirectional=True, dtype=torch.float64)
    torch._dynamo.reset()

    def loss(x, mask):
        y, state = ours(x, reset=mask, reset_to=to)
        return sum(t.sin().sum() for t in flat((y.data if packed else y, state)))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ([9, 7, 7, 2], [11, 5, 4, 4, 3]):
            x = torch.randn(lengths[0], len(lengths), I, dtype=torch.float64)
            x = pack_padded_sequence(x, lengths) if packed else x
            mask = random_mask(x)
            weights = list(ours.parameters())
            got, want = (torch.autograd.grad(f(x, mask), weights) for f in (compiled, loss))
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    torch._dynamo.reset()


def test_exported():
    ours = fused_rnn.LSTM(I, H, 2, bidirectional=True).eval()
    x = torch.randn(T, B, I)
    mask = random_mask(x)
    sizes = {0: torch.export.Dim("T", min=2, max=100), 1: torch.export.Dim("B", min=2, max=100)}
    shapes = {"input": sizes, "reset": sizes}
    program = torch.export.export(ours, (x,), {"reset": mask}, dynamic_shapes=shapes)
    x = torch.randn(T + 3, B + 1, I)
    mask = random_mask(x)
    torch.testing.assert_close(program.module()(x, reset=mask), ours(x, reset=mask))


def test_a_packed_mask_of_its_own():
    """Packed from the same lengths, not with the input's own indices."""
    ours = fused_rnn.GRU(I, H, dtype=torch.float64)
    lengths = [2, 7, 9, 7]
    x, mask = torch.randn(9, B, I, dtype=torch.float64), random_mask(torch.empty(9, B, 1))
    packed, begins = (pack_padded_sequence(t, lengths, enforce_sorted=False) for t in (x, mask))
    assert isinstance(begins, PackedSequence)
    y, _ = ours(packed, reset=begins)
    got = nn.utils.rnn.pad_packed_sequence(y)[0]
    want, _ = ours(x, reset=mask)
    for b, length in enumerate(lengths):
        torch.testing.assert_close(got[:length, b], want[:length, b])
