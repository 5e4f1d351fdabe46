"""The ops against the reference in f64 and against torch.nn, over options, sizes, layouts and hard values."""

from collections import defaultdict
from dataclasses import replace
from statistics import mean, median

import pytest
import torch
from loop_cases import (
    CELLS,
    Case,
    all_needs,
    assert_close_in_norm,
    assert_identical,
    assert_same,
    backward,
    backward_gates,
    expected,
    forward,
    make,
    run,
)

from fused_rnn.ops import Save
from fused_rnn.reference import Cell, split_weights

OPTIONS = [
    Case(cell, T=T, B=5, H=11, P=P, D=D, bias=bias, packed=packed)
    for cell in CELLS
    for T in (3, 8)  # straight from the weights, and over packed panels
    for P in ((0, 6) if cell == Cell.LSTM else (0,))
    for D in (1, 2)
    for bias in (True, False)
    for packed in (False, True)
]
SAVES = [Save.ALL, Save.STATES]
EVERY_KIND = [
    Case(cell, P=P, D=2, packed=packed) for cell, P in [*((c, 0) for c in CELLS), (Cell.LSTM, 6)] for packed in (0, 1)
]


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_options(case, save):
    problem = make(case)
    assert_same(run(problem, save), expected(problem))


# Every height of a register tile and every width of a panel, whole and broken vectors, on each
# instruction set: 2 to 16 lanes, up to 4 vectors wide.
@pytest.mark.parametrize("H", [1, 2, 7, 8, 9, 16, 17, 31, 40, 65])
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_tiles(cell, H):
    for B in [*range(1, 10), 13]:
        problem = make(Case(cell, T=6, B=B, I=3, H=H, packed=B % 2 == 0))
        want = expected(problem)
        for save in SAVES:
            assert_same(run(problem, save), want)


@pytest.mark.parametrize("P", [1, 2, 7, 8, 9, 16, 17, 31])
def test_projected_tiles(P):
    for B in [*range(1, 10), 13]:
        problem = make(Case(Cell.LSTM, T=6, B=B, I=3, H=P + B, P=P, packed=B % 2 == 1))
        assert_same(run(problem), expected(problem))


EDGES = [
    *({"T": T, "B": B} for T in (1, 2, 7) for B in (1, 4, 5)),
    {"B": 0},
    {"T": 1, "B": 0},
    {"T": 1, "B": 9, "packed": True},
    {"B": 1, "packed": True},
    {"I": 1, "H": 1},
    {"I": 0},
    {"I": 0, "T": 1, "B": 1},
    {"T": 33, "B": 2},
]


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("edge", EDGES, ids=lambda e: "-".join(f"{k}{int(v)}" for k, v in e.items()))
@pytest.mark.parametrize("kind", EVERY_KIND[::2], ids=str)
def test_edges(kind, edge, save):
    problem = make(replace(kind, **edge))
    assert_same(run(problem, save), expected(problem))


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
def test_long_sequences_in_chunks(kind, save):
    # 2 MiB of gx and 4 MiB of dgx a chunk: several forward, several backward, not of one length
    problem = make(replace(kind, T=70, B=110, H=40 if kind.cell.gates > 1 else 90))
    assert_same(run(problem, save), expected(problem), rtol=1e-9, atol=1e-10)


NN = {Cell.LSTM: torch.nn.LSTM, Cell.GRU: torch.nn.GRU, Cell.RNN_TANH: torch.nn.RNN, Cell.RNN_RELU: torch.nn.RNN}


def by_nn(case, problem):
    """The same layer as torch.nn runs it, in the problem's dtype."""
    options = {"nonlinearity": "relu"} if case.cell == Cell.RNN_RELU else {}
    options |= {"proj_size": case.P} if case.P else {}
    module = NN[case.cell](case.I, case.H, bias=case.bias, bidirectional=case.D == 2, **options).to(problem.x.dtype)
    parameters = list(module.parameters())
    for parameter, weight in zip(parameters, problem.weights, strict=True):
        parameter.data.copy_(weight)
    x, h0, c0 = (None if t is None else t.clone().requires_grad_() for t in (problem.x, problem.h0, problem.c0))
    sizes = problem.batch_sizes
    y, state = module(
        x if sizes is None else torch.nn.utils.rnn.PackedSequence(x, sizes), h0 if c0 is None else (h0, c0)
    )
    y = y if sizes is None else y.data
    outputs = (y, state) if c0 is None else (y, *state)
    incoming = (problem.dy, problem.dhn) if c0 is None else (problem.dy, problem.dhn, problem.dcn)
    grads = list(torch.autograd.grad(outputs, [x, h0, *([] if c0 is None else [c0]), *parameters], incoming))
    none = x.new_empty(0).detach()
    out = {"y": y, "hn": outputs[1], "cn": none if c0 is None else outputs[2]}
    out |= {"dx": grads.pop(0), "dh0": grads.pop(0), "dc0": none if c0 is None else grads.pop(0)}
    return {k: v.detach() for k, v in out.items()} | {f"dweights[{i}]": g for i, g in enumerate(grads)}


@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
@pytest.mark.parametrize("T", [4, 12])
def test_against_nn(kind, T):
    case = replace(kind, T=T)
    problem = make(case)
    assert_same(run(problem), by_nn(case, problem))


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
def test_error_beside_nn(kind, dtype, save):
    # Within twice torch's own error, both measured against f64 on the same rounded inputs, in the
    # mean over sizes and seeds: a single tensor of a few values says little. A ReLU at its kink takes one side or the
    # other by a rounding, ours or torch's, and all gradients with it: so there the median, of more seeds.
    relu = kind.cell == Cell.RNN_RELU
    ours, theirs = defaultdict(list), defaultdict(list)
    for seed, (T, H, I) in enumerate(((3, 20, 12), (15, 37, 12), (15, 37, 50), (3, 64, 9)) * (3 if relu else 1)):
        case = replace(kind, T=T, B=6, H=H, I=I)
        problem = make(case, dtype, seed)
        exact = expected(problem.to(torch.float64))
        results = run(problem, save), by_nn(case, problem)
        for name, value in exact.items():
            assert results[0][name].dtype == dtype
            for total, result in zip((ours, theirs), results, strict=True):
                if value.numel():
                    error = (result[name].double() - value).square().mean() / value.square().mean()
                    total[name].append(float(error))
    assert ours.keys() == theirs.keys()
    typical = median if relu else mean
    for name in ours:
        assert typical(ours[name]) ** 0.5 <= 2 * typical(theirs[name]) ** 0.5, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", [kind for kind in EVERY_KIND if kind.cell != Cell.RNN_RELU], ids=str)
def test_narrow_gradients_of_several_chunks_of_one_and_of_few_rows(kind, dtype):
    # Gathered in f32 over chunks; stored at once by a single one, and by few rows. Without relu, which has kinks.
    for D, T, B in ((2, 140, 110), (2, 12, 110), (1, 12, 110), (1, 2, 2), (2, 1, 3)):
        problem = make(replace(kind, D=D, T=T, B=B, H=40 if kind.cell.gates > 1 else 90), dtype)
        assert_close_in_norm(run(problem), expected(problem.to(torch.float64)), torch.finfo(dtype).eps)


def expand_last(t):
    return t[..., :1].expand(t.shape)


LAYOUTS = {
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "batch_first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1) if t.dim() > 1 else t,
    "every_other": lambda t: torch.stack([t, -t], -1)[..., 0],
    "wide_rows": lambda t: torch.cat([t, t + 1], -1)[..., : t.shape[-1]],
    "offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "expanded_rows": lambda t: t[:1].expand(t.shape),
    "expanded_middle": lambda t: t[:, :1].expand(t.shape) if t.dim() == 3 else t[:1].expand(t.shape),
    "expanded_last": expand_last,
    "windows": lambda t: t.flatten().as_strided(t.shape, (t.shape[-1] // 2 or 1,) * (t.dim() - 1) + (1,)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
def test_layouts_do_not_matter(kind, layout, dtype):
    change = LAYOUTS[layout]
    for T in (2, 9):
        problem = make(replace(kind, T=T, B=4, I=6, H=10), dtype)
        matrices = [w for w in problem.weights if w.dim() == 2]
        names = ["x", "h0", "c0", "dy", "dhn", "dcn"]
        changed = replace(
            problem,
            weights=[change(w) if w.dim() > 1 else w for w in problem.weights],
            **{k: t if (t := getattr(problem, k)) is None else change(t) for k in names},
        )
        assert matrices
        plain = replace(
            changed,
            weights=[w.contiguous() for w in changed.weights],
            **{
                k: t if (t := getattr(changed, k)) is None else t.clone(memory_format=torch.contiguous_format)
                for k in names
            },
        )
        y, hn, cn, saved = forward(changed)
        # products of BLAS may round in another order for another layout
        tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-2, "atol": 2e-2}
        assert_same(
            {"y": y, "hn": hn, "cn": cn, "saved": saved},
            dict(zip(("y", "hn", "cn", "saved"), forward(plain))),
            **tolerance,
        )
        assert_same(backward(changed, y, saved), backward(plain, y, saved), **tolerance)
        strided = [torch.stack([t, t], -1)[..., 0] for t in (y, saved)]
        assert_identical(backward(changed, *strided), backward(changed, y, saved))


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
@pytest.mark.parametrize("T", [1, 9])
def test_each_need_alone(kind, T, save):
    problem = make(replace(kind, T=T), torch.float32)
    y, _, _, saved = forward(problem, save)
    whole = backward(problem, y, saved)
    asked = {0: "dx", 1: "dh0", 2: "dc0"} | {3 + i: f"dweights[{i}]" for i in range(len(problem.weights))}
    assert all(g.shape == (0,) for g in backward(problem, y, saved, needs=0).values())
    for bit, name in asked.items():
        got = backward(problem, y, saved, needs=1 << bit)
        assert_identical({name: got[name]}, {name: whole[name]})
        assert all(g.shape == (0,) for other, g in got.items() if other != name)


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("absent", ["dy", "dhn", "dcn", "dy dhn", "dhn dcn", "dy dcn"])
@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
def test_absent_gradients_are_zero(kind, absent, save):
    absent = absent.split()
    for T in (2, 8):
        problem = make(replace(kind, T=T))
        y, _, _, saved = forward(problem, save)
        zeros = {k: torch.zeros_like(t) for k in absent if (t := getattr(problem, k)) is not None}
        got = backward(replace(problem, **dict.fromkeys(absent)), y, saved)
        assert_same(got, backward(replace(problem, **zeros), y, saved), rtol=0, atol=0)


@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
@pytest.mark.parametrize("T", [2, 9, 900])
@pytest.mark.parametrize("save", SAVES)
def test_backward_gates(kind, T, save):
    problem = make(replace(kind, T=T))
    y, _, _, saved = forward(problem, save)
    whole, gates = backward(problem, y, saved), backward_gates(problem, y, saved)
    assert_same({k: gates[k] for k in ("dh0", "dc0")}, {k: whole[k] for k in ("dh0", "dc0")}, rtol=0, atol=0)
    D, GH = problem.h0.shape[0], problem.weights[0].shape[0]
    N, H = problem.x.numel() // problem.x.shape[-1], GH // problem.cell.gates
    assert gates["dgx"].shape == (N, D * GH)
    assert gates["dgh"].shape == ((N, D * H) if problem.cell.is_gru else (0,))
    assert gates["dr"].shape == ((N, D * problem.h0.shape[2]) if kind.P else (0,))
    each = split_weights(problem.weights, D, problem.cell)
    per = len(problem.weights) // D
    x = problem.x.reshape(N, -1)
    dx = torch.zeros_like(x)
    for d in range(D):
        dgx = gates["dgx"][:, d * GH : (d + 1) * GH]
        hidden = dgx
        if problem.cell.is_gru:
            hidden = torch.cat([dgx[:, : 2 * H], gates["dgh"][:, d * H : (d + 1) * H]], 1)
        dx += dgx @ each[d].w_ih
        assert_same(
            {"w_ih": dgx.T @ x, "b_ih": dgx.sum(0), "b_hh": hidden.sum(0)},
            {k: whole[f"dweights[{d * per + i}]"] for k, i in (("w_ih", 0), ("b_ih", 2), ("b_hh", 3))},
        )
        if kind.P:
            dr = gates["dr"].view(N, D, -1)[:, d]
            o, c = forward(problem)[3][d].view(N, 5, H)[:, 3:].unbind(1)
            assert_same({"w_hr": dr.T @ (o * c.tanh())}, {"w_hr": whole[f"dweights[{d * per + 4}]"]})
    assert_same({"dx": dx.view(problem.x.shape)}, {"dx": whole["dx"]})


@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
@pytest.mark.parametrize("T", [1, 3, 9])
@pytest.mark.parametrize("save", SAVES)
def test_nothing_is_changed_and_nothing_aliases(kind, T, save):
    problem = make(replace(kind, T=T), torch.float32)
    before = {k: t.clone() for k, t in problem.tensors().items()}
    y, hn, cn, saved = forward(problem, save)
    kept = {"y": y.clone(), "saved": saved.clone()}
    outputs = [y, hn, cn, saved, *backward(problem, y, saved).values(), *backward_gates(problem, y, saved).values()]
    assert_identical(problem.tensors(), before)
    assert_identical({"y": y, "saved": saved}, kept)
    storages = [t.untyped_storage().data_ptr() for t in (*outputs, *problem.tensors().values()) if t.numel()]
    assert len(set(storages)) == len(storages)
    assert all(t.is_contiguous() and not t.requires_grad for t in outputs)


@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
@pytest.mark.parametrize("T", [3, 9])
def test_without_save(kind, T):
    problem = make(replace(kind, T=T), torch.float32)
    with_saved, without = forward(problem), forward(problem, Save.NOTHING)
    assert without[3].shape == (0,)
    names = ("y", "hn", "cn")
    assert_identical(dict(zip(names, without)), dict(zip(names, with_saved)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", EVERY_KIND, ids=str)
@pytest.mark.parametrize("T", [3, 9])
def test_with_states_only(kind, T, dtype):
    problem = make(replace(kind, T=T), dtype)
    *everything, saved = forward(problem)
    *others, states = forward(problem, Save.STATES)
    width = kind.H if kind.cell.is_lstm else 0  # h is y
    assert states.shape == (*saved.shape[:2], width)
    alike = saved.narrow(-1, saved.shape[-1] - width, width)
    assert_identical(dict(enumerate([*others, states])), dict(enumerate([*everything, alike])))


def test_needs_past_the_last_weight_are_ignored():
    problem = make(Case(Cell.GRU))
    y, _, _, saved = forward(problem)
    assert_identical(backward(problem, y, saved, needs=-1), backward(problem, y, saved, needs=all_needs(problem)))
