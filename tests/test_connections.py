"""Connections between layers: against layers of torch's joined by hand, and through all that a stack goes through."""

from __future__ import annotations

import copy
import importlib
import pickle
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import assert_close, scalar
from pairs import agree, flat, run
from test_differential import FAST, SIZES, layouts
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
from fused_rnn.interchange import to_keras, to_onnx

KINDS = ["residual", "dense", "highway"]
T, B, I, H = 6, 4, 3, 5


class ByHand(nn.Module):
    """The same, from modules of torch's of one layer each."""

    def __init__(self, kind, connection, features, hidden, layers, dropout, bidirectional, proj_size, **options):
        super().__init__()
        self.connection, self.dropout, self.batch_first = connection, dropout, options["batch_first"]
        self.directions, width = 1 + bidirectional, (1 + bidirectional) * (proj_size or hidden)
        options |= {"bidirectional": bidirectional} | ({"proj_size": proj_size} if proj_size else {})
        sizes = [features, *(features + k * width if connection == "dense" else width for k in range(1, layers))]
        self.layers = nn.ModuleList([getattr(nn, kind)(size, hidden, **options) for size in sizes])
        if connection == "highway":
            self.gates = nn.ModuleList([nn.Linear(width, width, dtype=options["dtype"]) for _ in range(1, layers)])

    def forward(self, input, hx=None):
        states, packing = [], input[1:] if isinstance(input, PackedSequence) else None
        x = input if packing is None else input.data
        for k, layer in enumerate(self.layers):
            own = slice(k * self.directions, (k + 1) * self.directions)
            first = None if hx is None else tuple(h[own] for h in hx) if isinstance(hx, tuple) else hx[own]
            y, last = layer(x if packing is None else PackedSequence(x, *packing), first)
            y = y if packing is None else y.data
            states.append(last)
            if k < len(self.layers) - 1:
                y = F.dropout(y, self.dropout)
            if self.connection == "dense":
                x = y if k == len(self.layers) - 1 else torch.cat([x, y], -1)
            elif k == 0:
                x = y
            elif self.connection == "residual":
                x = x + y
            else:
                gate = torch.sigmoid(self.gates[k - 1](x))
                x = gate * y + (1 - gate) * x
        joined = tuple(map(torch.cat, zip(*states, strict=True))) if isinstance(last, tuple) else torch.cat(states)
        return x if packing is None else PackedSequence(x, *packing), joined


@st.composite
def stacks(draw):
    kind, connection = draw(st.sampled_from(["LSTM", "GRU", "RNN"])), draw(st.sampled_from(KINDS))
    features, hidden, layers = draw(SIZES), draw(SIZES), draw(st.integers(2, 5))
    dtype = draw(st.sampled_from([torch.float64, torch.float64, torch.float32, torch.bfloat16]))
    common = {name: draw(st.booleans()) for name in ("bias", "batch_first", "bidirectional")} | {"dtype": dtype}
    common["dropout"] = draw(st.sampled_from([0.0, 0.0, 0.4]))
    projection = draw(st.sampled_from([0, hidden // 2])) if kind == "LSTM" else 0
    torch.manual_seed(draw(st.integers(0, 99)))
    theirs = ByHand(kind, connection, features, hidden, layers, proj_size=projection, **common)
    own = {"connection": connection, "recompute": draw(st.booleans())} | (
        {"proj_size": projection} if projection else {}
    )
    ours = getattr(fused_rnn, kind)(features, hidden, layers, **common, **own)
    with torch.no_grad():
        for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            parameter.copy_(other)
    steps, batch, form = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.sampled_from(["", "one", "packed"]))
    rows = [steps] if form == "one" else [batch, steps] if common["batch_first"] and not form else [steps, batch]
    input = layouts(draw, *rows, features, dtype=dtype, requires_grad=draw(st.booleans()))
    if form == "packed":
        lengths = draw(st.lists(st.integers(1, steps), min_size=batch, max_size=batch))
        input = pack_padded_sequence(input.detach(), lengths, enforce_sorted=False)
    slots = [layers * (1 + common["bidirectional"]), *([] if form == "one" else [batch])]
    hx = tuple(layouts(draw, *slots, size, dtype=dtype, requires_grad=True) for size in (projection or hidden, hidden))
    hx = None if draw(st.booleans()) else hx if kind == "LSTM" else hx[0]
    return theirs, ours, input, hx, draw(st.integers(0, 99))


@settings(max_examples=60, **FAST)
@given(stacks())
def test_stacks_agree(case):
    agree(*case)


def a_stack(connection, kind="LSTM", layers=3, **options):
    return getattr(fused_rnn, kind)(I, H, layers, connection=connection, **{"dtype": torch.float64, **options})


@pytest.mark.parametrize("connection", KINDS)
class TestStacks:
    @pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
    def test_lengths(self, connection, kind):
        """Of padded rows as of packed ones; those walked and masked, in a graph, too."""
        module = a_stack(connection, kind, bidirectional=True)
        x, lengths = torch.randn(T, B, I, dtype=torch.float64), torch.tensor([2, 6, 1, 4])
        x[2:, 0] = torch.nan
        packed, states = module(pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False))
        want = [nn.utils.rnn.pad_packed_sequence(packed)[0], *flat(states)]
        assert_close(flat(module(x, lengths=lengths)), want)
        assert_close(flat(vmap(lambda x: module(x, lengths=lengths))(x[None])), [tensor[None] for tensor in want])

    def test_derivatives(self, connection):
        module = a_stack(connection, bidirectional=True, proj_size=2)
        x = torch.randn(3, 2, I, dtype=torch.float64, requires_grad=True)
        names, weights = zip(*module.named_parameters(), strict=True)
        kept = [i for i, name in enumerate(names) if "l2" in name and "reverse" not in name]

        def function(x, *own):
            values = dict(zip(names, weights, strict=True)) | {names[i]: w for i, w in zip(kept, own, strict=True)}
            return flat(functional_call(module, values, (x,)))

        args = (x, *(weights[i] for i in kept))
        torch.autograd.gradcheck(function, args, fast_mode=True)
        torch.autograd.gradgradcheck(scalar(function), args, fast_mode=True)

    def test_transforms(self, connection):
        """Ensembles, and gradients of each sample."""
        module, x = a_stack(connection, "GRU"), torch.randn(T, B, I, dtype=torch.float64)
        several = {name: torch.stack([p.detach(), p.detach() * 0.5]) for name, p in module.named_parameters()}
        together = vmap(lambda weights: functional_call(module, weights, (x,))[0])(several)
        for i in range(2):
            assert_close(together[i], functional_call(module, {n: w[i] for n, w in several.items()}, (x,))[0])

        def loss(weights, row):
            return functional_call(module, weights, (row,))[0].sin().sum()

        weights = {name: p.detach() for name, p in module.named_parameters()}
        each = vmap(grad(loss), (None, 1))(weights, x)
        for b in range(B):
            for name, value in grad(loss)(weights, x[:, b]).items():
                assert_close(each[name][b], value)

    def test_copies(self, connection):
        module, x = a_stack(connection, peephole=True, coupled_gates=True), torch.randn(T, B, I, dtype=torch.float64)
        other = a_stack(connection, peephole=True, coupled_gates=True)
        other.load_state_dict(module.state_dict())
        for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), other):
            assert_close(run(again, x, None), run(module, x, None))
            assert repr(again) == repr(module)
        text = repr(module).replace(", ", ",")
        assert f"connection='{connection}'" in text
        assert repr(eval(f"fused_rnn.{text}")) == repr(module)

    @pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
    def test_functions(self, connection, kind):
        module, x = a_stack(connection, kind, bidirectional=True), torch.randn(T, B, I, dtype=torch.float64)
        function = getattr(fused_rnn.functional, kind.lower())
        call = partial(function, x, None, num_layers=3, bidirectional=True, connection=connection)
        assert_close(flat(call(list(module.parameters()))), flat(module(x)))
        with pytest.raises(ValueError, match="then w_hw and b_hw" if connection == "highway" else "params must hold"):
            call(list(module.parameters())[:-1])

    @pytest.mark.cpu_only("it is about where there are no kernels")
    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    def test_without_kernels(self, connection):
        """torch's own functions, a layer at a time: a trace that may be trained, and complex numbers."""
        module, x = a_stack(connection), torch.randn(T, B, I, dtype=torch.float64)
        traced = torch.jit.trace(module, x, check_trace=False)
        assert str(traced.inlined_graph).count("aten::lstm(") == 3
        got, want = (torch.autograd.grad(f(x)[0].sum(), list(module.parameters())) for f in (traced, module))
        assert_close(got, want)
        real = a_stack(connection, "RNN")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = copy.deepcopy(real).to(torch.complex128)
            assert_close(module(x + 0j)[0].real, real(x)[0])

    @pytest.mark.cpu_only("other devices cast to other types")
    def test_autocast(self, connection):
        module, x = a_stack(connection, dtype=torch.float32), torch.randn(T, B, I)
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = module(x)
        assert y.dtype == torch.bfloat16
        assert_close(y.float(), module(x)[0], 0.02)

    @pytest.mark.cpu_only("a stream runs on the CPU")
    def test_what_it_is_refused_for(self, connection):
        module = a_stack(connection)
        report = fused_rnn.convert(nn.Sequential(module), to="torch")
        assert "has connections between layers that torch.nn does not have" in report.left[0].reason
        with pytest.raises(ValueError, match=f"stacks without connections, got connection='{connection}'"):
            fused_rnn.Stream(module)
        for function in (to_keras, to_onnx):
            with pytest.raises(ValueError, match="no connections between them"):
                function(module)

    def test_one_layer(self, connection):
        """It has none."""
        with pytest.warns(UserWarning, match="expects num_layers greater than 1"):
            module = a_stack(connection, layers=1)
        plain = fused_rnn.LSTM(I, H, dtype=torch.float64)
        plain.load_state_dict(module.state_dict())
        x = torch.randn(T, B, I, dtype=torch.float64)
        assert all(torch.equal(a, b) for a, b in zip(flat(module(x)), flat(plain(x)), strict=True))


def test_compiled():
    """All in one graph, as a compilation takes a second."""
    torch._dynamo.reset()
    modules = [a_stack(connection, "RNN", 2) for connection in KINDS]
    weights = [parameter for module in modules for parameter in module.parameters()]
    loss = scalar(lambda x: [tensor for module in modules for tensor in flat(module(x))])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for steps, rows in ((6, 4), (7, 3)):
            x = torch.randn(steps, rows, I, dtype=torch.float64)
            got, want = (torch.autograd.grad(f(x), weights) for f in (compiled, loss))
            assert_close(got, want)
    torch._dynamo.reset()


def test_parameters():
    """Their names, order, shapes and first values."""
    options = {"proj_size": 2, "bidirectional": True}
    plain = fused_rnn.LSTM(I, H, 3, **options).state_dict()
    shapes = {kind: {n: w.shape for n, w in a_stack(kind, **options).state_dict().items()} for kind in KINDS}
    assert shapes["residual"] == {name: weight.shape for name, weight in plain.items()}
    wider = {f"weight_ih_l{k}{d}": (4 * H, I + k * 4) for k in (1, 2) for d in ("", "_reverse")}
    assert shapes["dense"] == shapes["residual"] | wider
    added = {f"{name}_l{k}": shape for k in (1, 2) for name, shape in (("weight_hw", (4, 4)), ("bias_hw", (4,)))}
    assert list(shapes["highway"].items()) == [*shapes["residual"].items(), *added.items()]

    for connection in KINDS:
        module = a_stack(connection, **options)
        for _ in range(2):
            for name, weight in module.named_parameters():
                if "bias_hw" in name:
                    assert (weight == -1).all()
                else:
                    assert 0.5 * H**-0.5 < weight.abs().max() <= H**-0.5
            module.double().reset_parameters()
        assert all(a is b for a, b in zip(module.parameters(), module._flat_weights, strict=True))
        assert module.to("meta")(torch.empty(T, B, I, device="meta", dtype=torch.float64))[0].shape == (T, B, 4)


def test_connections_that_nothing_has():
    text = "connection must be one of 'residual', 'dense', 'highway' or None, got 'skip'"
    with pytest.raises(ValueError, match=text):
        a_stack("skip")
    with pytest.raises(ValueError, match=text):
        fused_rnn.functional.gru(torch.zeros(1, 1, 1), None, [torch.zeros(3, 1)] * 2, connection="skip")
    assert vars(fused_rnn.GRU(I, H, 2, connection=None)).keys() == vars(nn.GRU(I, H, 2)).keys()


@pytest.mark.cpu_only("the example trains on the CPU")
class TestDeepStacks:
    @pytest.fixture
    def deep_stacks(self, request, monkeypatch):
        monkeypatch.syspath_prepend(request.config.rootpath)
        return importlib.import_module("examples.deep_stacks")

    def test_they_train(self, deep_stacks, capsys):
        deep_stacks.main(["--seeds", "0"])
        assert "highway" in capsys.readouterr().out

    def test_it_notices_that_they_do_not(self, deep_stacks):
        with pytest.raises(AssertionError, match="has not learned"):
            deep_stacks.main(["--seeds", "0", "--steps", "3"])
