"""``lengths=``: a padded batch whose rows end where they do, against each row by itself, by both ways of walking it.

With all other options drawn at random it is in test_differential.py, its refusals in test_errors.py.
"""

from __future__ import annotations

from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from devices import device, on_cpu
from layer_cases import assert_close
from pairs import KINDS, agree, flat, pair, run
from rows import WAYS, ByRows, OfLengths, going
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import fused_rnn
from fused_rnn import network
from fused_rnn.lengths import Packing

F64 = torch.float64
NAN = float("nan")
T, B, I, H = 7, 5, 3, 6
LENGTHS = [3, 7, 0, 5, 7]
EVERY = [("LSTM", {}), ("LSTM", {"proj_size": 2}), ("GRU", {}), ("RNN", {}), ("RNN", {"nonlinearity": "relu"})]
each_kind = pytest.mark.parametrize(("kind", "options"), EVERY, ids=lambda v: v if isinstance(v, str) else "-".join(v))
each_way = pytest.mark.parametrize("way", WAYS)


def test_rows_are_packed_on_their_own_device():
    """A number that lay on another one would stop a GPU's call."""
    packing = Packing(torch.tensor(LENGTHS, device="cpu"), T, False, torch.device("meta"))
    x, state = torch.empty(T, B, I, device="meta"), torch.empty(1, B, H, device="meta")
    packed, first = packing.pack(x), packing.initial(state)
    assert packed.is_meta
    assert packed.shape == (sum(LENGTHS), I)
    assert packing.batch_sizes.tolist() == [4, 4, 4, 3, 3, 2, 2]
    assert packing.pad(packed).shape == x.shape
    assert packing.final(first, state).shape == state.shape


def made(kind: str, options: dict, layers: int = 2, dtype: torch.dtype = F64, **more) -> tuple[nn.Module, nn.Module]:
    return pair(kind, I, H, layers, bidirectional=True, dtype=dtype, **options, **more)


def states(net: nn.Module, rows: int = B, dtype: torch.dtype = F64, **options):
    sizes = [net.proj_size or H, *([H] if net.mode == "LSTM" else [])]
    given = tuple(torch.randn(2 * net.num_layers, rows, size, dtype=dtype, **options) for size in sizes)
    return given if net.mode == "LSTM" else given[0]


@each_way
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16], ids=str)
@each_kind
def test_each_row_as_by_itself(kind, options, dtype, way):
    if dtype == torch.bfloat16 and options.get("nonlinearity"):
        pytest.skip("rounding carries a unit over zero")
    theirs, ours = made(kind, options, dtype=dtype)
    x = torch.randn(T, B, I, dtype=dtype, requires_grad=True)
    lengths = torch.tensor(LENGTHS)
    for hx in (None, states(ours, dtype=dtype, requires_grad=True)):
        for recompute in (False, True):
            ours.recompute = recompute
            agree(ByRows(theirs, lengths), OfLengths(ours, way, lengths=lengths), x, hx)


@each_way
@pytest.mark.parametrize("kind", KINDS)
def test_forms_of_input_and_lengths(kind, way):
    """Another layout, one row, another integer type, and numbers out of range, which are taken as 0 or T."""
    for batch_first in (False, True):
        theirs, ours = made(kind, {}, batch_first=batch_first)
        shape = (B, T) if batch_first else (T, B)
        x = torch.randn(*shape, I, dtype=F64, requires_grad=True)
        for dtype in (torch.int64, torch.int32, torch.int16, torch.int8):
            lengths = torch.tensor([3, T + 90, -4, 5, T], dtype=dtype)
            agree(ByRows(theirs, lengths), OfLengths(ours, way, lengths=lengths), x, states(ours, requires_grad=True))
        for length in (0, 4, T + 3):
            x = torch.randn(T, I, dtype=F64, requires_grad=True)
            lengths, hx = torch.tensor(length, dtype=torch.uint8), states(ours, requires_grad=True)
            hx = tuple(h[:, 0] for h in hx) if kind == "LSTM" else hx[:, 0]
            theirs_by_rows = ByRows(theirs, lengths)
            if length:
                agree(theirs_by_rows, OfLengths(ours, way, lengths=lengths), x, hx)
            else:
                assert_close(flat(OfLengths(ours, way, lengths=lengths)(x, hx)), flat(theirs_by_rows(x, hx)), 0)
    x = torch.randn(200, 2, I, dtype=F64)
    theirs, ours = made(kind, {}, 1)
    lengths = torch.tensor([127, -128], dtype=torch.int8)  # T is no int8
    agree(ByRows(theirs, lengths), OfLengths(ours, way, lengths=lengths), x)


@each_way
@pytest.mark.parametrize("to", ["zero", "initial"])
@pytest.mark.parametrize("kind", KINDS)
def test_with_resets(kind, to, way):
    for batch_first in (False, True):
        theirs, ours = made(kind, {}, batch_first=batch_first)
        shape = (B, T) if batch_first else (T, B)
        x, reset = torch.randn(*shape, I, dtype=F64, requires_grad=True), torch.rand(shape) < 0.4
        lengths, hx = torch.tensor(LENGTHS), states(ours, requires_grad=True)
        by_rows = ByRows(theirs, lengths, reset, to)
        agree(by_rows, OfLengths(ours, way, lengths=lengths, reset=reset, reset_to=to), x, hx)


@each_way
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("options", [{}, {"proj_size": 2}], ids=str)
def test_with_cells(options, reset, way):
    """c of every step: of each row by itself, zero past its end, with gradients."""
    _, ours = made("LSTM", options, batch_first=True)
    x, lengths = torch.randn(B, T, I, dtype=F64, requires_grad=True), torch.tensor(LENGTHS)
    hx = states(ours, requires_grad=True)
    given = {"reset": torch.rand(B, T) < 0.4, "reset_to": "initial"} if reset else {}

    def by_rows(x, hx):
        c = x.new_zeros(B, T, 2 * H)
        y = x.new_zeros(B, T, 2 * (ours.proj_size or H))
        finals = [state.clone() for state in hx]
        for b, n in enumerate(LENGTHS):
            if n:
                own = {"reset": given["reset"][b, :n], "reset_to": "initial"} if reset else {}
                (y[b, :n], c[b, :n]), final = ours(x[b, :n], tuple(h[:, b] for h in hx), cells=True, **own)
                finals[0][:, b], finals[1][:, b] = final
        return (y, c), tuple(finals)

    by_rows.parameters = ours.parameters
    assert_close(run(OfLengths(ours, way, lengths=lengths, cells=True, **given), x, hx), run(by_rows, x, hx))


@each_way
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("options", [{}, {"proj_size": 2}], ids=str)
def test_peepholes_and_coupled_gates_with_cells(options, reset, way):
    """All of it at once, against the reference, each row by itself."""
    ours = fused_rnn.LSTM(I, H, 2, bidirectional=True, peephole=True, coupled_gates=True, dtype=F64, **options)
    x, hx = torch.randn(T, B, I, dtype=F64, requires_grad=True), states(ours, requires_grad=True)
    marks = torch.rand(T, B) < 0.4

    def given(*rows):
        return {"reset": marks[rows], "reset_to": "initial"} if reset else {}

    def by_rows(x, hx):
        c = x.new_zeros(T, B, 2 * H)
        y = x.new_zeros(T, B, 2 * (ours.proj_size or H))
        finals = [state.clone() for state in hx]
        with mock.patch.object(network, "has_kernels", return_value=False):
            for b, n in enumerate(LENGTHS):
                if n:
                    first = tuple(h[:, b] for h in hx)
                    (y[:n, b], c[:n, b]), final = ours(x[:n, b], first, cells=True, **given(slice(n), b))
                    finals[0][:, b], finals[1][:, b] = final
        return (y, c), tuple(finals)

    by_rows.parameters = ours.parameters
    lengths = torch.tensor(LENGTHS)
    assert_close(run(OfLengths(ours, way, lengths=lengths, cells=True, **given()), x, hx), run(by_rows, x, hx))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {"activation": "identity"}),
        ("LSTM", {"gate_activation": "relu"}),
        ("GRU", {"activation": "relu"}),
        ("RNN", {"nonlinearity": "identity"}),
    ],
    ids=str,
)
def test_variants_that_would_grow_past_the_end(kind, options):
    ours = getattr(fused_rnn, kind)(I, H, bidirectional=True, dtype=F64, **options)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.fill_(0.6)
    x, lengths = torch.rand(600, 3, I, dtype=F64, requires_grad=True), torch.tensor([0, 2, 3])
    padded, packed = (run(OfLengths(ours, way, lengths=lengths), x, None) for way in ("padded", "packed"))
    assert all(tensor.isfinite().all() for tensor in packed)
    assert_close(padded, packed)


@each_way
@each_kind
def test_nothing_of_what_lies_past_the_end(kind, options, way):
    """Neither its values, NaN among them, nor the states of rows without a step; and no gradient goes there."""
    _, ours = made(kind, options)
    lengths = torch.tensor(LENGTHS)
    past = (torch.arange(T).unsqueeze(1) >= lengths).unsqueeze(-1)
    x, hx = torch.randn(T, B, I, dtype=F64), flat(states(ours))

    def results(value: float) -> list[torch.Tensor]:
        filled = x.masked_fill(past, value).requires_grad_()
        first = tuple(h.index_fill(1, torch.tensor([2]), value).requires_grad_() for h in hx)
        y, *others = run(OfLengths(ours, way, lengths=lengths), filled, first if kind == "LSTM" else first[0])
        finals, (dx, *gradients) = others[: len(hx)], others[len(hx) :]
        assert not y.masked_select(past).any()
        assert not dx.masked_select(past).any()
        for final, initial in zip(finals, first, strict=True):
            assert torch.equal(final[:, 2].nan_to_num(7), initial[:, 2].nan_to_num(7))
        return [y, dx, *gradients, *(final.index_fill(1, torch.tensor([2]), 0) for final in finals)]

    for clean, spoilt in zip(results(0.0), results(NAN), strict=True):
        assert torch.equal(clean, spoilt)


@each_way
@each_kind
def test_states_that_would_grow_past_the_end(kind, options, way):
    """With these weights a relu is infinite after 600 steps of zeros, and what comes back there is zero: NaN."""
    theirs, ours = pair(kind, I, H, bidirectional=True, dtype=F64, **options)
    with torch.no_grad():
        for parameter in [*theirs.parameters(), *ours.parameters()]:
            parameter.fill_(0.6)
    x, lengths = torch.rand(600, 3, I, dtype=F64, requires_grad=True), torch.tensor([0, 2, 3])
    agree(ByRows(theirs, lengths), OfLengths(ours, way, lengths=lengths), x)


@each_way
@pytest.mark.parametrize("kind", KINDS)
def test_no_steps_at_all(kind, way):
    """Gradients are zero, not missing."""
    _, ours = made(kind, {})
    for rows in (0, 3):
        x, hx = torch.randn(T, rows, I, dtype=F64, requires_grad=True), states(ours, rows, requires_grad=True)
        lengths = torch.zeros(rows, dtype=torch.int64)
        count = 1 + len(flat(hx))
        y, *others = run(OfLengths(ours, way, lengths=lengths), x, hx)
        assert y.shape == (T, rows, 2 * H)
        assert not y.any()
        for final, initial in zip(others[: count - 1], flat(hx), strict=True):
            assert torch.equal(final, initial)
        dx, *gradients = others[count - 1 :]
        assert not dx.any()
        assert all(g.any() == (rows > 0) for g in gradients[: count - 1])  # of hx, by the final states
        assert not any(g.any() for g in gradients[count - 1 :])
        for final in flat(OfLengths(ours, way, lengths=lengths)(x)[1]):
            assert not final.any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_get_the_steps_that_there_are(kind, monkeypatch):
    _, ours = made(kind, {})
    calls = []

    def counted(*args):
        calls.append(args[0].shape)
        return layer(*args)

    layer = network.layer
    monkeypatch.setattr(network, "layer", counted)
    ours(torch.randn(T, B, I, dtype=F64), lengths=torch.tensor(LENGTHS))
    if on_cpu():
        assert calls == [(sum(LENGTHS), I), (sum(LENGTHS), 2 * H)]
    else:
        assert calls == [(T, B, I)] * 2 + [(T, B, 2 * H)] * 2


@each_way
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_layers(kind, way):
    theirs, ours = made(kind, {}, dropout=1.0)
    x, lengths = torch.randn(T, B, I, dtype=F64), torch.tensor(LENGTHS)
    agree(ByRows(theirs, lengths), OfLengths(ours, way, lengths=lengths), x)  # all of it
    ours.dropout = 0.5
    given = OfLengths(ours, way, lengths=lengths)
    first, again = run(given, x, None, seed=1), run(given, x, None, seed=1)
    other = run(given, x, None, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    given.eval()
    agree(ByRows(theirs.eval(), lengths), given, x)


@each_way
def test_changed_outputs_and_inputs(way):
    """Outputs may be written to, lengths too; they are no part of a graph. Nothing is an alias of an argument."""
    _, ours = made("LSTM", {})
    x, lengths, hx = torch.randn(T, B, I, dtype=F64), torch.zeros(B, dtype=torch.int64), states(ours)
    kept = [h.clone() for h in hx]
    for numbers in (LENGTHS, [0] * B):
        lengths.copy_(torch.tensor(numbers))
        y, (hn, cn) = OfLengths(ours, way, lengths=lengths)(x, hx)
        want = torch.autograd.grad(y.sum() + hn.sum(), list(ours.parameters()), retain_graph=True)
        for output in (y, hn, cn):
            output.detach().zero_()
        lengths.zero_()
        assert_close(torch.autograd.grad(y.sum() + hn.sum(), list(ours.parameters())), want, 0)
        assert all(torch.equal(h, k) for h, k in zip(hx, kept, strict=True))


@each_way
@each_kind
def test_derivatives(kind, options, way):
    """Of the second order too, and forward mode, which always goes the padded way."""
    _, ours = pair(kind, 2, 3, bidirectional=True, dtype=F64, **options)
    lengths = torch.tensor([2, 0, 4])
    x = torch.randn(4, 3, 2, dtype=F64, requires_grad=True)
    hx = [
        torch.randn(2, 3, size, dtype=F64, requires_grad=True)
        for size in {"LSTM": (options.get("proj_size", 3), 3)}.get(kind, (3,))
    ]
    names = [name for name, _ in ours.named_parameters()]

    def function(x, *others):
        hx, weights = others[: -len(names)], others[-len(names) :]
        hx = hx if kind == "LSTM" else hx[0]
        with going(way):
            return flat(functional_call(ours, dict(zip(names, weights, strict=True)), (x, hx), {"lengths": lengths}))

    inputs = (x, *hx, *ours.parameters())
    forward = {"check_forward_ad": True, "check_batched_forward_grad": True} if way == "padded" else {}
    assert gradcheck(lambda *args: tuple(function(*args)), inputs, fast_mode=True, check_batched_grad=True, **forward)
    assert gradgradcheck(lambda *args: tuple(function(*args)), inputs, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_functions_and_autocast(kind):
    _, ours = made(kind, {}, dtype=torch.float32)
    x, lengths = torch.randn(T, B, I), torch.tensor(LENGTHS)
    function = getattr(fused_rnn.functional, {"RNN": "rnn_tanh"}.get(kind, kind.lower()))
    got = function(x, None, list(ours.parameters()), num_layers=2, bidirectional=True, lengths=lengths)
    assert all(torch.equal(a, b) for a, b in zip(flat(got), flat(ours(x, lengths=lengths)), strict=True))
    hx = states(ours, dtype=torch.float32)
    with torch.autocast(device().type, dtype=torch.bfloat16):
        plain, got = flat(ours(x, hx)), flat(ours(x, hx, lengths=lengths))
        full = flat(ours(x, hx, lengths=torch.full((B,), T)))
    assert [t.dtype for t in got] == [t.dtype for t in plain]
    assert all(torch.equal(a, b) for a, b in zip(full, plain, strict=True)) or not on_cpu()
    with torch.inference_mode():
        assert all(t.is_inference() for t in flat(ours(x, lengths=lengths)))


def test_whatever_the_default_device():
    gru, x, lengths = fused_rnn.GRU(3, 4), torch.randn(5, 3, 3), torch.tensor([5, 0, 2])
    expected = gru(x, lengths=lengths)
    with torch.device("meta"):
        for given, wanted in zip(gru(x, lengths=lengths), expected, strict=True):
            assert torch.equal(given, wanted)


def test_complex_numbers():
    """Without kernels: by the reference."""
    ours = fused_rnn.LSTM(I, H, 2, bidirectional=True, dtype=torch.complex128)
    x, lengths = torch.randn(T, B, I, dtype=torch.complex128), torch.tensor(LENGTHS)
    outputs = [flat(OfLengths(ours, way, lengths=lengths)(x)) for way in WAYS]
    assert_close(*outputs)
    assert_close(outputs[0][0][:3, 0], ours(x[:3, 0])[0])


@pytest.mark.cuda
@pytest.mark.parametrize(("where", "dtype"), [("cuda", torch.int64), ("cpu", torch.int64), ("cpu", torch.int32)])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_waits_for_the_device(kind, where, dtype):
    """Where lengths come from the CPU, test_without_gpu.py looks at it without a GPU."""
    _, ours = made(kind, {}, dtype=torch.float32)
    x, lengths = torch.randn(T, B, I, requires_grad=True), torch.tensor(LENGTHS, device=where, dtype=dtype)
    given = OfLengths(ours, lengths=lengths)
    run(given, x, None)
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = ours(x, lengths=lengths)[0]
        y.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert "FusedLayer" in ours(x)[0].grad_fn.name()


@pytest.mark.skipif(not on_cpu(), reason="elsewhere numbers are not read in any case")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_mode_that_looks_on_in_the_forward_only(reentrant):
    """A checkpoint does the forward again outside of it: the same way, from the same random numbers."""
    module = fused_rnn.GRU(I, H, 2, dropout=0.5, dtype=F64)
    x = torch.randn(T, B, I, dtype=F64, requires_grad=True)

    def gradient(mode):
        torch.manual_seed(0)
        with mode:
            y = checkpoint(lambda x: module(x, lengths=torch.tensor(LENGTHS))[0], x, use_reentrant=reentrant)
        x.grad = None
        y.sum().backward()
        return x.grad

    torch.testing.assert_close(gradient(FlopCounterMode(display=False)), gradient(nullcontext()))
