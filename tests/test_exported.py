"""Programs of ``torch.export``, traces of ``torch.jit``, graphs of ``torch.fx``: gradients, weights and nodes stay."""

import io

import pytest
import torch
from pairs import CELLS, KINDS
from torch import nn
from torch.autograd import forward_ad
from torch.export import export
from torch.fx.proxy import TraceError
from torch.library import opcheck

import fused_rnn

F64 = torch.float64


class Tagger(nn.Module):
    """A layer in front, whose gradient comes through ours and past it."""

    def __init__(self, kind, **options):
        super().__init__()
        self.front = nn.Linear(3, 4)
        self.net = getattr(fused_rnn, kind)(4, 4, **options)

    def forward(self, x, **options):
        x = self.front(x)
        return x + self.net(x, **options)[0]


def gradients(module, x, **options):
    module.zero_grad()
    module(x, **options).square().sum().backward()
    return [parameter.grad.clone() for parameter in module.parameters()]


def assert_same(module, program, x, **options):
    # Of one order: a program's parameters are those of the module.
    for ours, theirs in zip(gradients(program, x, **options), gradients(module, x, **options), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.any()


@pytest.mark.parametrize("recording", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_program_is_trained_as_its_module(kind, strict, recording):
    module, x = Tagger(kind, num_layers=2), torch.randn(5, 2, 3)
    with torch.set_grad_enabled(recording):
        program = export(module, (x,), strict=strict)
    assert_same(module, program.module(), x)
    written = io.BytesIO()
    torch.export.save(program, written)
    written.seek(0)
    assert_same(module, torch.export.load(written).module(), x)


OPTIONS = {
    "recompute": {"recompute": True},
    "layer_norm": {"layer_norm": True},
    "zoneout": {"zoneout_h": 0.2},
    "connection": {"num_layers": 2, "connection": "residual"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_options_of_a_program(kind, options):
    module, x, marks = Tagger(kind, **options).eval(), torch.randn(5, 2, 3), torch.rand(5, 2) < 0.3
    assert_same(module, export(module, (x,), {"reset": marks}).module(), x, reset=marks)


def test_cells_and_lengths_of_a_program():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = fused_rnn.LSTM(3, 4)

        def forward(self, x, lengths):
            (y, c), _ = self.net(x, lengths=lengths, cells=True)
            return torch.cat([y, c], -1)

    module, x, lengths = Sums(), torch.randn(5, 3, 3), torch.tensor([5, 2, 0])
    assert_same(module, export(module, (x,), {"lengths": lengths}).module(), x, lengths=lengths)


def test_second_derivatives_of_a_program():
    module, x = Tagger("GRU").to(F64), torch.randn(3, 2, 3, dtype=F64, requires_grad=True)
    program = export(module, (x,)).module()
    assert torch.autograd.gradcheck(program, x)
    assert torch.autograd.gradgradcheck(program, x)


def test_a_compiled_program_is_trained():
    module, x = Tagger("LSTM"), torch.randn(5, 2, 3)
    program = export(module, (x,)).module()
    assert_same(module, torch.compile(program, backend="aot_eager", fullgraph=True), x)


def test_of_frozen_weights_the_input_has_its_gradient():
    module = fused_rnn.GRU(3, 4).requires_grad_(False)
    x = torch.randn(5, 2, 3)
    program = export(module, (x,)).module()
    x.requires_grad_()
    (ours,), (theirs,) = (torch.autograd.grad(net(x)[0].sum(), x) for net in (program, module))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_keeps_nothing_for_a_backward(kind):
    """Which may never come: another forward keeps it, if it does."""
    program = export(getattr(fused_rnn, kind)(3, 4), (torch.randn(5, 2, 3),))
    (call,) = [node for node in program.graph.nodes if "fused_rnn" in str(node.target)]
    assert call.target is torch.ops.fused_rnn.exported_layer.default
    assert call.args[6] == 0


def test_the_op_of_programs():
    x, h0 = torch.randn(5, 2, 3, requires_grad=True), torch.randn(1, 2, 4, requires_grad=True)
    weights = [torch.randn(shape, requires_grad=True) for shape in ((12, 3), (12, 4), (12,), (12,))]
    opcheck(torch.ops.fused_rnn.exported_layer.default, (x, h0, None, weights, None, 1, 0))


@pytest.mark.cpu_only("TorchScript's optimiser is the same on every device")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("optimised", [torch.jit.freeze, torch.jit.optimize_for_inference])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_trace_keeps_its_weights(kind, layers, optimised):
    """Torch moves the tensors out of a constant list at the first call."""
    net, x = getattr(fused_rnn, kind)(3, 4, layers).eval().requires_grad_(False), torch.randn(5, 2, 3)
    for traced in (optimised(torch.jit.trace(net, (x,))), torch.jit.trace(lambda x: net(x), (x,))):
        for _ in range(3):
            torch.testing.assert_close(traced(x), net(x))


def test_fx_takes_a_module_as_one_node():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fused_rnn.GRU(3, 4)

        def forward(self, x, h):
            return self.rnn(x, h)[0] * 2

    model = Model()
    traced = torch.fx.symbolic_trace(model)
    assert [node.op for node in traced.graph.nodes][2] == "call_module"
    x, h = torch.randn(2, 1, 3), torch.randn(1, 1, 4)
    assert torch.equal(traced(x, h), model(x, h))


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_one_node_of_a_graph(name):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = getattr(fused_rnn, name)(3, 4)

        def forward(self, x, hx):
            return self.cell(x, hx)

    model, x = Model(), torch.randn(2, 3)
    h = torch.randn(2, 4)
    traced, state = torch.fx.symbolic_trace(model), (h, h) if name == "LSTMCell" else h
    assert [node.op for node in traced.graph.nodes].count("call_module") == 1
    torch.testing.assert_close(traced(x, state), model(x, state))
    alone = torch.fx.symbolic_trace(nn.Sequential(model.cell))
    torch.testing.assert_close(alone(x), model.cell(x))


def test_what_a_program_cannot():
    """No tangent is lost without a word, and what torch.func asks is refused."""
    x = torch.randn(4, 2, 3)
    program = export(fused_rnn.GRU(3, 4).requires_grad_(False), (x,)).module()
    run = lambda x: program(x)[0]  # noqa: E731
    for transform in (torch.func.jacfwd(run), torch.func.grad(lambda x: run(x).sum())):
        with pytest.raises(NotImplementedError, match=r"program of torch\.export"):
            transform(x)
    with pytest.raises(RuntimeError, match="fused_rnn::exported_layer"):
        torch.vmap(run)(x[None])
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=r"program of torch\.export"):
        program(forward_ad.make_dual(x, x))


@pytest.mark.parametrize("kind", KINDS)
def test_batched_gradients_of_a_program(kind):
    module, x = Tagger(kind), torch.randn(2, 1, 3)
    program = export(module, (x,)).module()
    ours, theirs = (torch.autograd.functional.jacobian(net, x, vectorize=True) for net in (program, module))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.cpu_only("TorchScript is the same on every device")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_checks_types():
    net, x = fused_rnn.LSTM(3, 4).requires_grad_(False), torch.randn(5, 2, 3)
    traced = torch.jit.trace(net, (x,), check_trace=False)
    with pytest.raises(RuntimeError, match="must have the dtype of x"):
        traced(x.double())


@pytest.mark.parametrize("name", CELLS)
def test_fx_takes_no_cell_apart(name):
    with pytest.raises(TraceError, match=f"{name} is one node of a graph"):
        torch.fx.symbolic_trace(getattr(fused_rnn, name)(3, 4))
