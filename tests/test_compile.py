"""``torch.compile`` and ``torch.export`` over layers and modules: one graph, no recompilation, and no silent zeros."""

import pytest
import torch
from devices import pack_sequence
from layer_cases import KINDS, assert_close, make_layer, scalar
from torch._dynamo.utils import counters
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
from fused_rnn import autograd

MODULES = {
    "lstm": lambda **options: fused_rnn.LSTM(3, 7, **options),
    "lstm-proj": lambda **options: fused_rnn.LSTM(3, 7, proj_size=2, **options),
    "gru": lambda **options: fused_rnn.GRU(3, 7, **options),
    "relu": lambda **options: fused_rnn.RNN(3, 7, nonlinearity="relu", **options),
    "lstm-recompute": lambda **options: fused_rnn.LSTM(3, 7, proj_size=2, recompute=True, **options),
    "gru-recompute": lambda **options: fused_rnn.GRU(3, 7, recompute=True, **options),
}


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _compiled(function, backend="aot_eager", **options):
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def _without_recompiling():
    return torch._dynamo.config.patch(error_on_recompile=True)


def _with_gradients(function, leaves):
    return function(*leaves), torch.autograd.grad(scalar(function)(*leaves), leaves)


@pytest.mark.parametrize(("D", "packed"), [(1, True), (2, False)], ids=["packed", "bidirectional"])
@pytest.mark.parametrize("kind", KINDS)
class TestLayer:
    def test_other_sizes_need_no_other_graph(self, kind, D, packed):
        cell = int(KINDS[kind]["cell"])

        def function(x, states, weights, batch_sizes):
            h0, c0 = states if len(states) == 2 else (states[0], None)
            y, hn, cn, _ = autograd.layer(x, h0, c0, weights, batch_sizes, cell)
            return (y, hn) if cn is None else (y, hn, cn)

        compiled = _compiled(function, dynamic=True)
        with _without_recompiling():
            for T, B in ((6, 4), (11, 3), (3, 8), (8, 9)):  # sizes that other sizes of the layer do not have
                layer = make_layer(kind, D=D, packed=packed, T=T, B=B, I=13, H=17)
                k, leaves = layer.states, layer.leaves()
                got = _with_gradients(lambda *a: compiled(a[0], a[1:k], a[k:], layer.batch_sizes), leaves)
                assert_close(got, _with_gradients(layer.theirs, leaves))

    def test_without_gradients(self, kind, D, packed):
        layer = make_layer(kind, D=D, packed=packed)
        compiled = _compiled(layer.ours)
        assert_close(compiled(*layer.args), layer.theirs(*layer.args))
        with torch.no_grad():
            assert_close(compiled(*layer.leaves()), layer.theirs(*layer.args))

    def test_frozen_weights(self, kind, D, packed):
        layer = make_layer(kind, D=D, packed=packed)
        args = [*layer.args[:-1], layer.args[-1].clone().requires_grad_()]
        compiled = _compiled(layer.ours)
        got, wanted = (torch.autograd.grad(scalar(f)(*args), args[-1]) for f in (compiled, layer.theirs))
        assert_close(got, wanted)


@pytest.mark.parametrize("kind", MODULES)
class TestModules:
    def _check(self, net, compiled, *inputs):
        def run(function):
            y, state = function(*inputs)
            y = y.data if isinstance(y, PackedSequence) else y
            states = state if isinstance(state, tuple) else (state,)
            loss = sum(output.sin().sum() for output in (y, *states))
            return (y, *states), torch.autograd.grad(loss, list(net.parameters()))

        assert_close(run(compiled), run(net), 1e-5)

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_padded(self, kind, backend):
        net = MODULES[kind](num_layers=2, bidirectional=True)
        compiled = _compiled(net, backend, dynamic=True)
        with _without_recompiling():
            for T, B in ((6, 4), (11, 5), (5, 9)):
                self._check(net, compiled, torch.randn(T, B, 3))

    @pytest.mark.parametrize("sort", [False, True], ids=["sorted", "unsorted"])
    def test_packed(self, kind, sort):
        """A PackedSequence argument; of a sorted one no shape tells B, and no state is given."""
        net = MODULES[kind](bidirectional=True)
        compiled = _compiled(net, dynamic=True)
        with _without_recompiling():
            for lengths in ([6, 5, 5, 2], [9, 4, 4, 3, 1], [5, 5, 2], [4, 3, 2, 2, 2, 2, 1]):
                lengths = lengths[::-1] if sort else lengths
                packed = pack_sequence([torch.randn(n, 3) for n in lengths], enforce_sorted=not sort)
                self._check(net, compiled, packed)

    def test_packed_with_states(self, kind):
        net = MODULES[kind](num_layers=2)
        compiled = _compiled(net, dynamic=True)
        with _without_recompiling():
            for T, lengths in ((6, [6, 5, 5, 2]), (9, [9, 4, 4, 3, 1])):
                B = len(lengths)
                packed = pack_padded_sequence(torch.randn(T, B, 3), lengths)
                hx = torch.randn(2, B, net.proj_size or 7)
                self._check(net, compiled, packed, (hx, torch.randn(2, B, 7)) if "lstm" in kind else hx)

    @pytest.mark.parametrize("strict", [False, True])
    def test_export(self, kind, strict):
        net = MODULES[kind](num_layers=2, bidirectional=True).eval()
        sizes = {0: Dim("T", min=2, max=1000), 1: Dim("B", min=2, max=1000)}
        program = export(net, (torch.randn(6, 4, 3),), dynamic_shapes=(sizes,), strict=strict)
        for T, B in ((6, 4), (11, 3), (2, 9)):
            x = torch.randn(T, B, 3)
            assert_close(program.module()(x), net(x), 1e-6)


def test_export_of_a_packed_sequence():
    net = fused_rnn.GRU(3, 7)

    class Packed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, data, batch_sizes):
            y, hn = self.net(PackedSequence(data, batch_sizes))
            return y.data, hn

    first, second = (pack_sequence([torch.randn(n, 3) for n in lengths]) for lengths in ([6, 5, 5, 2], [9, 4, 1]))
    shapes = {0: Dim("N", min=2)}, {0: Dim("T", min=2)}
    program = export(Packed(), first[:2], dynamic_shapes=shapes, strict=False)
    assert_close(program.module()(*second[:2]), Packed()(*second[:2]), 1e-6)


def test_make_fx_records_the_ops():
    layer = make_layer("lstm", D=2)
    leaves = layer.leaves()

    def gradients(*args):
        return torch.autograd.grad(scalar(layer.ours)(*args), args)

    graph = make_fx(gradients, tracing_mode="symbolic")(*leaves)
    called = [str(node.target) for node in graph.graph.nodes if "fused_rnn" in str(node.target)]
    assert called == ["fused_rnn.layer_forward.default", "fused_rnn.layer_backward.default"]
    assert_close(graph(*leaves), gradients(*leaves))


TRANSFORMS = {
    "grad": lambda f, x: torch.func.grad(f)(x),
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, 2 * x])),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(f))(torch.stack([x, 2 * x])),
}


class TestBreaks:
    """What Dynamo cannot follow runs in eager mode with the right result; nothing is cut off silently."""

    def _function(self, kind):
        layer = make_layer(kind)
        return lambda x: scalar(layer.ours)(x, *layer.args[1:]), layer.args[0]

    @pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
    @pytest.mark.parametrize("kind", ["lstm"])
    def test_transform_inside(self, kind, transform):
        function, x = self._function(kind)
        compiled = torch.compile(lambda x: transform(function, x), backend="aot_eager")
        assert_close(compiled(x), transform(function, x))
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported, match="_beyond_dynamo"):
            torch.compile(lambda x: transform(function, x), backend="aot_eager", fullgraph=True)(x)

    @pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
    @pytest.mark.parametrize("kind", ["lstm"])
    def test_transform_outside(self, kind, transform):
        function, x = self._function(kind)
        assert_close(transform(torch.compile(function, backend="aot_eager"), x), transform(function, x))

    @pytest.mark.parametrize("kind", ["lstm", "gru"])
    def test_dual_level_outside(self, kind):
        function, x = self._function(kind)
        compiled = torch.compile(function, backend="aot_eager")
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, x)
            got, wanted = (torch.autograd.forward_ad.unpack_dual(f(dual)).tangent for f in (compiled, function))
        assert_close(got, wanted)

    @pytest.mark.parametrize("kind", ["lstm", "gru"])
    def test_second_order_of_a_layer_that_was_not_compiled(self, kind):
        """Dynamo comes upon our backward on its own there; taken for a compiled one it would end the graph."""
        layer = make_layer(kind)
        leaves = layer.leaves()
        uncompiled = torch._dynamo.disable(scalar(layer.ours))

        def second(*leaves):
            first = torch.autograd.grad(uncompiled(*leaves), leaves, create_graph=True)
            return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

        counters.clear()
        assert_close(torch.compile(second, backend="aot_eager")(*leaves), second(*leaves))
        assert counters["graph_break"]

    def test_second_order_of_a_compiled_layer_is_refused(self):
        layer = make_layer("gru")
        leaves = layer.leaves()
        first = torch.autograd.grad(_compiled(scalar(layer.ours))(*leaves), leaves, create_graph=True)
        with pytest.raises(RuntimeError, match="does not currently support double backward"):
            torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
