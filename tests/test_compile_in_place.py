"""Tensors changed in place in a graph, or after it, that has used them: gradients are those of the values it used."""

import pytest
import torch
from torch import nn

import fused_rnn

CELLS = ("LSTM", "GRU", "RNN")
BACKENDS = ("eager", "aot_eager", "inductor")


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def made(cell, library=fused_rnn, **options):
    torch.manual_seed(0)
    return getattr(library, cell)(5, 5, **options)


def gradients(module, x, loss):
    leaves = [x, *module.parameters()] if x.requires_grad else list(module.parameters())
    return torch.autograd.grad(loss, leaves)


def inputs(*shape):
    return torch.linspace(-1, 2, torch.Size(shape).numel()).view(shape)


# (what is done in the graph, the same without a change in place)
IN_GRAPH = {
    "output": (lambda y, x: y.add_(x), lambda y, x: y + x),
    "output, masked": (lambda y, x: y.masked_fill_(x < 0, 0), lambda y, x: y.masked_fill(x < 0, 0)),
    "residual": (lambda y, x: x.add_(y), lambda y, x: x + y),
    "slice": (lambda y, x: y.index_fill_(0, torch.tensor(0), 0), lambda y, x: y.index_fill(0, torch.tensor(0), 0)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"num_layers": 2, "recompute": True}], ids=str)
@pytest.mark.parametrize("change", IN_GRAPH)
def test_in_the_graph(change, options, backend):
    in_place, anew = IN_GRAPH[change]
    for cell in CELLS:
        module, x = made(cell, **options), inputs(3, 4, 5).requires_grad_()

        def loss(x, change, module=module):
            x = 2 * x
            return change(module(x)[0], x).square().sum()

        got = torch.compile(loss, backend=backend, fullgraph=True)(x, in_place)
        torch.testing.assert_close(gradients(module, x, got), gradients(module, x, loss(x, anew)))


# How the module is called, and what a caller may do with what it gave: nothing that the backward reads is the caller's.
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 4, 5), {}),
        ((3, 4, 5), {"batch_first": True}),
        ((1, 4, 5), {"batch_first": True}),
        ((4, 1, 5), {"batch_first": True, "num_layers": 2}),
        ((3, 5), {}),
    ],
    ids=str,
)
def test_outputs_past_the_graph(shape, options, backend):
    for cell in CELLS:
        module, x = made(cell, **options), inputs(*shape)
        compiled = torch.compile(module, backend=backend)
        y = compiled(x)[0]
        y.masked_fill_(x < 0, 0)
        want = module(x)[0].masked_fill(x < 0, 0)
        torch.testing.assert_close(gradients(module, x, y.sum()), gradients(module, x, want.sum()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", [*CELLS, "LSTMCell", "GRUCell"])
def test_a_buffer_of_states(cell, backend):
    """Read, and then set to the next state, in one graph."""
    module, lstm = made(cell), cell.startswith("LSTM")
    x, shape = (inputs(2, 5), (2, 5)) if cell.endswith("Cell") else (inputs(3, 2, 5), (1, 2, 5))
    first = [inputs(*shape) / 3 for _ in range(1 + lstm)]

    def loss(states, x):
        out = module(x, tuple(states) if lstm else states[0])
        after = out if cell.endswith("Cell") else out[1]
        return (after if cell.endswith("Cell") else out[0]), after if lstm else (after,)

    def step(states, x):
        y, after = loss(states, x)
        for state, new in zip(states, after, strict=True):
            state.copy_(new.detach())
        return sum(part.square().sum() for part in (y if isinstance(y, tuple) else (y,)))

    states = [s.clone() for s in first]
    got = gradients(module, x, torch.compile(step, backend=backend, fullgraph=True)(states, x))
    want, after = loss(first, x)
    total = sum(part.square().sum() for part in (want if isinstance(want, tuple) else (want,)))
    torch.testing.assert_close(got, gradients(module, x, total))
    torch.testing.assert_close(states, list(after))


@pytest.mark.parametrize("cell", ["LSTMCell", "GRUCell"])
def test_tied_weights_of_cells(cell):
    """One tensor twice, which Dynamo refuses of a Function."""
    ours, theirs = made(cell), made(cell, nn)
    for module in (ours, theirs):
        module.bias_ih = module.bias_hh
    x = inputs(2, 5)
    got = torch.compile(ours, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(got, theirs(x))


def test_one_tensor_as_input_and_state():
    gru, x = made("GRU"), inputs(1, 2, 5).requires_grad_()
    got = torch.compile(gru, backend="aot_eager", fullgraph=True)(x, x)[0]
    torch.testing.assert_close(torch.autograd.grad(got.sum(), x), torch.autograd.grad(gru(x, x)[0].sum(), x))
