"""The specification against ``torch.nn`` and numbers worked out by hand."""

import math

import pytest
import torch
from layer_cases import KINDS, assert_close, make_layer
from loop_cases import LINEAR
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

from fused_rnn import reference
from fused_rnn.reference import Cell

NN = {
    "lstm": (torch.nn.LSTM, {}),
    "lstm-proj": (torch.nn.LSTM, {"proj_size": 2}),
    "gru": (torch.nn.GRU, {}),
    "tanh": (torch.nn.RNN, {}),
    "relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
}

COMPLEX = pytest.mark.cpu_only("torch's LSTM and GRU know no complex numbers on CUDA")


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float64) for kind in KINDS),
        *(pytest.param(kind, torch.complex128, marks=COMPLEX) for kind in KINDS if kind not in ("relu", "tanh")),
        ("tanh", torch.complex128),
    ],
)
def test_against_nn(kind, D, bias, packed, dtype):
    layer = make_layer(kind, D=D, bias=bias, packed=packed, B=6, T=5)
    # small: complex activations have poles
    args = [(torch.randn_like(a, dtype=dtype) / 3).requires_grad_() for a in layer.args]
    case, states = layer.case, args[: layer.states]
    module, options = NN[kind]
    net = module(case.I, case.H, bias=bias, bidirectional=D == 2, dtype=dtype, **options)
    with torch.no_grad():
        for parameter, weight in zip(net.parameters(), args[layer.states :], strict=True):
            parameter.copy_(weight)
    x, *hx = states
    data = x if not packed else PackedSequence(x, layer.batch_sizes)
    y, hn = net(data, tuple(hx) if case.cell.is_lstm else hx[0])
    wanted = (y.data if packed else y, *(hn if case.cell.is_lstm else (hn,)))
    got = layer.theirs(*args)
    assert_close(got, wanted, 1e-12)
    douts = [torch.randn_like(output) for output in wanted]
    leaves = (*states, *net.parameters())
    assert_close(torch.autograd.grad(got, args, douts), torch.autograd.grad(wanted, leaves, douts), 1e-11)


def _numbers(cell: Cell) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """One unit, one feature: w_ih 1, 2, .. and w_hh -1, -2, .. gate by gate, b_ih 0.5, b_hh -0.25."""
    steps = torch.arange(1.0, cell.gates + 1, dtype=torch.float64)
    weights = [steps[:, None], -steps[:, None], torch.full_like(steps, 0.5), torch.full_like(steps, -0.25)]
    states = [torch.tensor([[[value]]], dtype=torch.float64) for value in (0.3, -0.7)]
    return weights, states


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _by_hand(cell: Cell, x: float, h: float, c: float) -> tuple[float, ...]:
    linear = cell in LINEAR
    sigmoid, tanh = ((lambda v: v),) * 2 if linear else (_sigmoid, math.tanh)
    if cell is Cell.RNN_RELU:
        tanh = lambda v: max(v, 0.0)  # noqa: E731
    if cell.is_lstm:
        i, f, g, o = (k * x + 0.5 - k * h - 0.25 for k in (1, 2, 3, 4))
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        return sigmoid(o) * tanh(c), c
    if cell.is_gru:
        r, z = (sigmoid(k * x + 0.5 - k * h - 0.25) for k in (1, 2))
        n = tanh(3 * x + 0.5 + r * (-3 * h - 0.25))
        return ((1 - z) * n + z * h,)
    return (tanh(x + 0.5 - h - 0.25),)


@pytest.mark.parametrize("cell", Cell, ids=lambda cell: cell.name)
def test_one_step_by_hand(cell):
    weights, (h0, c0) = _numbers(cell)
    x = torch.tensor([[[0.9]]], dtype=torch.float64)
    y, hn, cn, _ = reference.layer(x, h0, c0 if cell.is_lstm else None, weights, None, cell)
    h, *c = _by_hand(cell, 0.9, 0.3, -0.7)
    assert y.item() == hn.item() == pytest.approx(h, rel=1e-14)
    assert (cn is None) == (not c)
    if c:
        assert cn.item() == pytest.approx(c[0], rel=1e-14)


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_row_is_a_sequence_of_its_own(kind, D):
    packed = make_layer(kind, D=D, packed=True, T=6, B=5)
    sizes = packed.batch_sizes.tolist()
    x, *states = packed.args[: packed.states]
    weights = packed.args[packed.states :]
    y, *finals = packed.theirs(*packed.args)
    begins = [sum(sizes[:t]) for t in range(len(sizes))]
    for b in range(5):
        rows = [begin + b for begin, size in zip(begins, sizes, strict=True) if size > b]
        alone = make_layer(kind, D=D, T=len(rows), B=1)
        y_b, *finals_b = alone.theirs(x[rows, None], *(s[:, b : b + 1] for s in states), *weights)
        assert_close(y[rows], y_b[:, 0])
        assert_close([f[:, b : b + 1] for f in finals], finals_b)


class _Written(TorchDispatchMode):
    """Counts the numbers that all operations together write."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            outputs = out if isinstance(out, (tuple, list)) else [out]
            self.numbers += sum(o.numel() for o in outputs if isinstance(o, torch.Tensor))
        return out


@pytest.mark.parametrize("kind", KINDS)
def test_training_a_packed_sequence_is_linear_in_its_length(kind):
    def written(T: int) -> int:
        layer = make_layer(kind, D=2, packed=True, T=T, B=4)
        leaves = layer.leaves()
        with _Written() as mode:
            torch.autograd.grad([o.sum() for o in layer.theirs(*leaves)], leaves)
        return mode.numbers

    assert written(64) < 2.1 * written(32)


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows(kind):
    layer = make_layer(kind, B=0, D=2)
    y, hn, *_ = layer.theirs(*layer.args)
    assert y.shape == (4, 0, 2 * layer.case.R)
    assert hn.shape == (2, 0, layer.case.R)


@pytest.mark.parametrize(("count", "directions"), [(1, 1), (6, 1), (5, 2), (0, 1)])
def test_a_wrong_number_of_weights(count, directions):
    with pytest.raises(ValueError, match=f"2 to 5 weights for each of {directions} directions, got {count} in all"):
        reference.split_weights([torch.zeros(1)] * count, directions, Cell.LSTM)


def test_the_numbers_of_the_cells_are_those_of_the_contract():
    assert [cell.name for cell in Cell] == [
        *("LSTM", "GRU", "RNN_TANH", "RNN_RELU", "LSTM_LINEAR", "GRU_LINEAR", "RNN_LINEAR")
    ]
    assert [cell.value for cell in Cell] == list(range(7))
    assert [cell.gates for cell in Cell] == [4, 3, 1, 1, 4, 3, 1]
