"""The ops on hard values (NaN, infinite, huge) and on arguments that do not fit."""

from dataclasses import replace

import pytest
import torch
from devices import device, rounds_operands
from loop_cases import CELLS, Case, assert_same, backward, expected, forward, make, run
from torch._C import DispatchKey, DispatchKeySet

from fused_rnn.reference import Cell

KINDS = [Case(c, D=2, packed=p, P=P) for c, P in [*((c, 0) for c in CELLS), (Cell.LSTM, 6)] for p in (False, True)]
INF, NAN = float("inf"), float("nan")


def spoiled(problem, name, value):
    """One element replaced, in the middle."""
    tensor = getattr(problem, name).clone()
    tensor.view(-1)[tensor.numel() // 2] = value
    return replace(problem, **{name: tensor})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["x", "h0", "c0", "dy", "dhn", "dcn"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_nan_goes_where_it_goes_in_the_reference(kind, name, dtype):
    for T in (3, 9):
        problem = make(replace(kind, T=T), dtype)
        if getattr(problem, name) is None:
            continue
        problem = spoiled(problem, name, NAN)
        got, want = run(problem), expected(problem)
        assert name in ("dy", "dhn", "dcn") or any(t.isnan().any() for t in want.values())
        assert_same(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [INF, -INF, 1e30, -1e30])
@pytest.mark.parametrize("name", ["x", "h0", "c0"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_huge_values(kind, name, value, dtype):
    for T in (3, 9):
        problem = make(replace(kind, T=T), dtype)
        if getattr(problem, name) is None:
            continue
        problem = spoiled(problem, name, value)
        got, want = run(problem), expected(problem)
        tolerance = 1e-4 if dtype == torch.float32 else 1e-9
        for key, values in want.items():
            finite = values[values.isfinite()].abs()
            scale = max(1.0, float(finite.max())) if finite.numel() else 1.0
            assert_same({key: got[key]}, {key: values}, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [INF, NAN, "max"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_hard_values_in_narrow_dtypes(kind, value, dtype):
    if value == "max" and kind.cell == Cell.RNN_RELU and rounds_operands(dtype):
        pytest.skip("as an operand of the next step an h past the largest narrow number is infinite, as it is in torch")
    value = torch.finfo(dtype).max if value == "max" else value
    problem = spoiled(make(kind, dtype), "x", value)
    y, hn, cn, _ = forward(problem)
    want = expected(problem.to(torch.float32))
    for got, exact in ((y, want["y"]), (hn, want["hn"]), (cn, want["cn"])):
        exact = exact.to(dtype)
        torch.testing.assert_close(got, exact, rtol=0.05, atol=0.05, equal_nan=True)


# ---- every check of csrc/torch, its text once ------------------------------------------------------

LSTM, GRU, RNN = Case(Cell.LSTM), Case(Cell.GRU), Case(Cell.RNN_TANH)
PACKED = replace(LSTM, packed=True)


def sizes(*values):
    return torch.tensor(values, device="cpu")


def change_weight(i, function):
    return lambda p: replace(p, weights=[function(w) if k == i else w for k, w in enumerate(p.weights)])


def drop_weight(p):
    return replace(p, weights=p.weights[:-1])


BAD_INPUTS = {
    "cell low": (LSTM, lambda p: replace(p, cell=-1), "unknown cell -1"),
    "cell high": (LSTM, lambda p: replace(p, cell=7), "unknown cell 7"),
    "x dtype": (RNN, lambda p: p.to(torch.int32), "x must be float32, float64, bfloat16 or float16"),
    "h0 dtype": (LSTM, lambda p: replace(p, h0=p.h0.float()), "h0 must have the dtype of x"),
    "c0 dtype": (LSTM, lambda p: replace(p, c0=p.c0.float()), "c0 must have the dtype of x"),
    "w_hh dtype": (LSTM, change_weight(1, torch.Tensor.float), "w_hh must have the dtype of x"),
    "x rank": (
        LSTM,
        lambda p: replace(p, x=p.x[0]),
        r"x must be \[T,B,I\] or, with batch_sizes, \[N,I\], got \[3, 5\]",
    ),
    "x rank packed": (PACKED, lambda p: replace(p, x=p.x[None]), r"x must be \[T,B,I\] or, with batch_sizes"),
    "h0 rank": (LSTM, lambda p: replace(p, h0=p.h0[0]), r"h0 must be \[D,B,R\], got \[3, 9\]"),
    "directions": (LSTM, lambda p: replace(p, h0=p.h0.repeat(3, 1, 1)), "h0 must have 1 or 2 directions, got 3"),
    "no directions": (LSTM, lambda p: replace(p, h0=p.h0[:0]), "h0 must have 1 or 2 directions, got 0"),
    "few weights": (
        LSTM,
        lambda p: replace(p, weights=p.weights[:1]),
        "2 to 5 tensors for each direction, got 1 for 1",
    ),
    "many weights": (
        LSTM,
        lambda p: replace(p, weights=p.weights * 2),
        "2 to 5 tensors for each direction, got 8 for 1",
    ),
    "odd weights": (replace(LSTM, D=2), drop_weight, "2 to 5 tensors for each direction, got 7 for 2"),
    "GRU projection": (GRU, lambda p: replace(p, weights=[*p.weights, p.h0[0]]), "only the LSTM has projections"),
    "w_ih rank": (LSTM, change_weight(0, torch.flatten), r"w_ih \[180\] does not fit h0 \[1, 3, 9\]"),
    "no units": (LSTM, change_weight(0, lambda w: w[:3]), r"w_ih \[3, 5\] does not fit h0 \[1, 3, 9\]"),
    "no projected units": (
        replace(LSTM, P=4),
        lambda p: replace(p, h0=p.h0[..., :0]),
        r"w_ih \[36, 5\] does not fit h0 \[1, 3, 0\]",
    ),
    "H of h0": (LSTM, lambda p: replace(p, h0=p.h0[..., :8]), r"w_ih \[36, 5\] does not fit h0 \[1, 3, 8\]"),
    "w_ih columns": (LSTM, change_weight(0, lambda w: w[:, 1:]), r"w_ih must have shape \[36, 5\], got \[36, 4\]"),
    "w_ih rows": (LSTM, change_weight(0, lambda w: w.repeat(1, 1)[:-1]), "does not fit h0"),
    "w_hh": (LSTM, change_weight(1, lambda w: w[1:]), r"w_hh must have shape \[36, 9\], got \[35, 9\]"),
    "w_hh transposed": (GRU, change_weight(1, torch.Tensor.t), r"w_hh must have shape \[27, 9\], got \[9, 27\]"),
    "b_ih": (LSTM, change_weight(2, lambda w: w[1:]), r"b_ih must have shape \[36\], got \[35\]"),
    "b_hh": (LSTM, change_weight(3, lambda w: w[None]), r"b_hh must have shape \[36\], got \[1, 36\]"),
    "w_hr": (replace(LSTM, P=4), change_weight(4, torch.Tensor.t), r"w_hr must have shape \[4, 9\], got \[9, 4\]"),
    "second direction": (replace(RNN, D=2), change_weight(5, lambda w: w[1:]), r"w_hh must have shape \[9, 9\]"),
    "no c0": (LSTM, lambda p: replace(p, c0=None), "an LSTM needs c0"),
    "c0 shape": (LSTM, lambda p: replace(p, c0=p.c0[:, 1:]), r"c0 must have shape \[1, 3, 9\], got \[1, 2, 9\]"),
    "batch": (LSTM, lambda p: replace(p, x=p.x[:, 1:]), "x has batch 2, h0 has 3"),
    "no steps": (LSTM, lambda p: replace(p, x=p.x[:0]), "expected sequence length to be larger than 0"),
    "sizes dtype": (PACKED, lambda p: replace(p, batch_sizes=p.batch_sizes.int()), "batch_sizes must be a 1-D int64"),
    "sizes rank": (PACKED, lambda p: replace(p, batch_sizes=p.batch_sizes[None]), "batch_sizes must be a 1-D int64"),
    "sizes rise": (PACKED, lambda p: replace(p, batch_sizes=sizes(2, 3)), "batch_sizes must not increase"),
    "sizes past h0": (PACKED, lambda p: replace(p, batch_sizes=sizes(4, 3)), "nor pass the batch of h0"),
    "sizes negative": (PACKED, lambda p: replace(p, batch_sizes=sizes(3, -1)), "batch_sizes must not increase"),
    "sizes too few": (PACKED, lambda p: replace(p, batch_sizes=sizes(3, 1)), "batch_sizes add up to 4 rows, x has 15"),
    "sizes begin": (
        PACKED,
        lambda p: replace(p, batch_sizes=sizes(2, 2), x=p.x[:4]),
        "batch_sizes begin with 2, h0 has batch 3",
    ),
    "no sizes": (
        PACKED,
        lambda p: replace(p, batch_sizes=sizes()[:0].long(), x=p.x[:0]),
        "batch_sizes begin with 0|length",
    ),
}


@pytest.mark.parametrize("what", BAD_INPUTS)
def test_input_checks(what):
    case, spoil, text = BAD_INPUTS[what]
    problem = make(case)
    y, _, _, saved = forward(problem)
    bad = spoil(problem)
    with pytest.raises(RuntimeError, match=f"layer_forward: .*({text})"):
        forward(bad)
    with pytest.raises(RuntimeError, match=f"layer_backward: .*({text})"):
        backward(bad, y.to(bad.x.dtype), saved.to(bad.x.dtype))


def _freed(tensor):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize("what", ["x", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh", "reset"])
def test_memory_that_was_freed(what):
    """As those who shard weights do it: a tensor of sizes, without what it points to."""
    problem = make(replace(LSTM, reset="zero"))
    y, _, _, saved = forward(problem)
    if what in ("x", "h0", "c0", "reset"):
        bad = replace(problem, **{what: _freed(getattr(problem, what))})
    else:
        bad = change_weight(["w_ih", "w_hh", "b_ih", "b_hh"].index(what), _freed)(problem)
    with pytest.raises(RuntimeError, match=rf"^layer_forward: {what} \[.*\] has a storage without memory"):
        forward(bad)
    with pytest.raises(RuntimeError, match=rf"^layer_backward: {what} \[.*\] has a storage without memory"):
        backward(bad, y, saved)


@pytest.mark.parametrize("what", ["y", "saved"])
def test_kept_memory_that_was_freed(what):
    problem = make(LSTM)
    y, _, _, saved = forward(problem)
    kept = {"y": y, "saved": saved}
    kept[what] = _freed(kept[what])
    with pytest.raises(RuntimeError, match=rf"^layer_backward: {what} \[.*\] has a storage without memory"):
        backward(problem, kept["y"], kept["saved"])


@pytest.mark.parametrize("save", [-1, 3])
def test_unknown_save(save):
    with pytest.raises(RuntimeError, match=f"layer_forward: save must be 0, 1 or 2, got {save}"):
        forward(make(LSTM), save)


BAD_GRADIENTS = {
    "dy": (LSTM, {"dy": lambda t: t[1:]}, r"dy must have shape \[7, 3, 9\], got \[6, 3, 9\]"),
    "dy packed": (PACKED, {"dy": lambda t: t[None]}, r"dy must have shape \[15, 9\], got \[1, 15, 9\]"),
    "dy dtype": (GRU, {"dy": lambda t: t.float()}, "dy must have the dtype of x"),
    "dhn": (GRU, {"dhn": lambda t: t[..., 1:]}, r"dhn must have shape \[1, 3, 9\], got \[1, 3, 8\]"),
    "dcn": (LSTM, {"dcn": lambda t: t[0]}, r"dcn must have shape \[1, 3, 9\], got \[3, 9\]"),
    "dcn dtype": (LSTM, {"dcn": lambda t: t.half()}, "dcn must have the dtype of x"),
    "y": (LSTM, {"y": lambda t: t[..., 1:]}, r"y must have shape \[7, 3, 9\], got \[7, 3, 8\]"),
    "y packed": (PACKED, {"y": lambda t: t[1:]}, r"y must have shape \[15, 9\], got \[14, 9\]"),
    "saved": (LSTM, {"saved": lambda t: t[:, 1:]}, r"saved must have shape \[1, 21, 45\], got \[1, 20, 45\]"),
    "nothing saved": (GRU, {"saved": lambda t: t.new_empty(0)}, r"saved must have shape \[1, 21, 36\], got \[0\]"),
    "nothing to save": (RNN, {"saved": lambda t: t.new_empty(0)}, r"saved must have shape \[1, 21, 0\], got \[0\]"),
    "y of a GRU": (GRU, {"y": lambda t: t[..., 1:]}, r"y must have shape \[7, 3, 9\], got \[7, 3, 8\]"),
    "states of too few": (
        LSTM,
        {"saved": lambda t: t[:, 1:, :9]},
        r"saved must have shape \[1, 21, 9\], got \[1, 20, 9\]",
    ),
    "saved dtype": (RNN, {"saved": lambda t: t.float()}, "saved must have the dtype of x"),
}


@pytest.mark.parametrize("what", BAD_GRADIENTS)
@pytest.mark.parametrize("op", ["layer_backward", "layer_backward_gates"])
def test_gradient_checks(what, op):
    case, spoil, text = BAD_GRADIENTS[what]
    p = make(case)
    y, _, _, saved = forward(p)
    grads = {"dy": p.dy, "dhn": p.dhn, "dcn": p.dcn, "y": y, "saved": saved}
    g = {k: spoil[k](t) if k in spoil else t for k, t in grads.items()}
    args = (g["dy"], g["dhn"], g["dcn"], p.x, p.h0, p.c0, p.weights, g["y"], g["saved"], p.batch_sizes, int(p.cell))
    with pytest.raises(RuntimeError, match=f"{op}: {text}"):
        getattr(torch.ops.fused_rnn, op)(*args, *([1] if op == "layer_backward" else []))


@pytest.mark.parametrize("name", ["x", "h0", "c0", "w_ih", "batch_sizes"])
def test_other_devices_are_refused(name):
    # straight to the device's kernel: a meta tensor would else be answered by the fake one
    p = make(PACKED)
    p = (
        change_weight(0, lambda w: w.to("meta"))(p)
        if name == "w_ih"
        else replace(p, **{name: getattr(p, name).to("meta")})
    )
    text = "1-D int64 tensor on the CPU" if name == "batch_sizes" else "must be on the device of x"
    op = torch.ops.fused_rnn.layer_forward.default
    key = DispatchKeySet(getattr(DispatchKey, device().type.upper()))
    with pytest.raises(RuntimeError, match=f"layer_forward: .*{text}"):
        op.redispatch(key, p.x, p.h0, p.c0, p.weights, p.batch_sizes, int(p.cell), 1)


def test_a_layer_of_one_step_of_no_rows_still_gives_every_gradient():
    problem = make(replace(GRU, T=1, B=0, D=2))
    y, _, _, saved = forward(problem)
    got = backward(problem, y, saved)
    assert [got[f"dweights[{i}]"].shape for i in range(8)] == [w.shape for w in problem.weights]
    assert all((got[f"dweights[{i}]"] == 0).all() for i in range(8))
