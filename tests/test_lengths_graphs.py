"""``lengths=`` in graphs and under transforms, where nobody can look at the numbers."""

from __future__ import annotations

import pytest
import torch
from layer_cases import assert_close
from pairs import KINDS, flat, leaves
from test_lengths import F64, LENGTHS, B, H, I, T, each_kind, made
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.fx import symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx

import fused_rnn

V = 3
MAPPED = {"x": (None, 0, None), "lengths": (None, None, 0), "both": (None, 0, 0), "weights": (0, 0, None)}


def outputs_of(ours: nn.Module):
    """y and the final states as a function of the weights, x and lengths; a loss of these; the loss's gradients."""

    def outputs(weights, x, lengths):
        return tuple(flat(functional_call(ours, weights, (x,), {"lengths": lengths})))

    def loss(*args):
        return sum(output.sin().sum() for output in outputs(*args))

    def gradients(weights, x, lengths):
        own = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        return torch.autograd.grad(loss(own, x, lengths), list(own.values()))

    return outputs, loss, gradients


def examples(ours: nn.Module):
    """Of the three arguments, V each."""
    weights = {name: torch.stack([w.detach() * (v + 1) for v in range(V)]) for name, w in ours.named_parameters()}
    lengths = torch.stack([torch.tensor(LENGTHS).roll(v) for v in range(V)])
    return weights, torch.randn(V, T, B, I, dtype=F64), lengths


def one(args, dims, v):
    """Example v, of what is not mapped the first."""
    weights, x, lengths = (0 if dim is None else v for dim in dims)
    return {name: w[weights] for name, w in args[0].items()}, args[1][x], args[2][lengths]


def mapped(args, dims):
    return tuple(each if dim == 0 else first for each, first, dim in zip(args, one(args, dims, 0), dims, strict=True))


@pytest.mark.parametrize("name", MAPPED)
@each_kind
def test_mapped(kind, options, name):
    ours, dims = made(kind, options)[1], MAPPED[name]
    outputs, _, _ = outputs_of(ours)
    args = examples(ours)
    every = zip(*(outputs(*one(args, dims, v)) for v in range(V)), strict=True)
    assert_close(vmap(outputs, dims)(*mapped(args, dims)), tuple(map(torch.stack, every)))


@each_kind
def test_gradients_of_each_example(kind, options):
    ours, dims = made(kind, options)[1], MAPPED["both"]
    _, loss, gradients = outputs_of(ours)
    args = examples(ours)
    every = [gradients(*one(args, dims, v)) for v in range(V)]
    of_each = vmap(grad(loss), dims)(*mapped(args, dims))
    assert_close(list(of_each.values()), [torch.stack(parts) for parts in zip(*every, strict=True)])
    of_all = grad(lambda *args: vmap(loss, dims)(*args).sum())(*mapped(args, dims))
    assert_close(list(of_all.values()), [sum(parts) for parts in zip(*every, strict=True)])


@pytest.mark.parametrize(
    ("kind", "options", "batch_first"),
    [("LSTM", {}, False), ("GRU", {}, True), ("RNN", {"nonlinearity": "relu"}, False)],
)
def test_compiled(kind, options, batch_first):
    """One graph for all lengths and sizes."""
    _, ours = made(kind, options, 1, batch_first=batch_first)
    torch._dynamo.reset()

    def loss(x, lengths):
        return sum((i + 1) * t.sin().sum() for i, t in enumerate(flat(ours(x, lengths=lengths))))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for steps, numbers in ((9, [3, 9, 0, 5]), (11, [0, 4, 11]), (9, [2, 9, 9, 5]), (4, [0, 0, 0, 0, 0])):
            shape = (len(numbers), steps) if batch_first else (steps, len(numbers))
            x, lengths = torch.randn(*shape, I, dtype=F64, requires_grad=True), torch.tensor(numbers)
            wanted = leaves(x, list(ours.parameters()))
            got, want = (torch.autograd.grad(f(x, lengths), wanted) for f in (compiled, loss))
            assert_close(got, want)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_exported_and_traced(kind):
    """Other lengths and sizes than those of the example; a trace knows nothing of what it was made with either."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = made(kind, {})[1].requires_grad_(False)

        def forward(self, x, lengths):
            return flat(self.net(x, lengths=lengths))

    net, example = Net(), (torch.randn(T, B, I, dtype=F64), torch.tensor(LENGTHS))
    steps, batch = torch.export.Dim("T", min=2, max=100), torch.export.Dim("B", min=2, max=100)
    program = torch.export.export(net, example, dynamic_shapes=({0: steps, 1: batch}, {0: batch}))
    traced = torch.jit.trace(net, example)
    graph = make_fx(net)(*example)
    x, lengths = torch.randn(T, B, I, dtype=F64), torch.tensor([0, 5, 4, 1, T])
    for function in (program.module(), traced, graph):
        assert_close(list(function(x, lengths)), net(x, lengths))
    x, lengths = torch.randn(T + 3, 3, I, dtype=F64), torch.tensor([9, 0, 4])
    assert_close(list(program.module()(x, lengths)), net(x, lengths))


def test_a_node_of_a_graph():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = fused_rnn.GRU(I, H)

        def forward(self, x, lengths):
            return self.net(x, lengths=lengths)[0]

    net, x, lengths = Net(), torch.randn(T, B, I), torch.tensor(LENGTHS)
    graph = symbolic_trace(net)
    assert [node.op for node in graph.graph.nodes].count("call_module") == 1
    assert torch.equal(graph(x, lengths), net(x, lengths))
