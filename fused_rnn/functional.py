"""Recurrent networks and single steps as functions of their parameters.

Formulas, gate order and shapes are those of ``torch.nn`` (LSTM i, f, g, o; GRU r, z, n with the reset gate after the
product); ``reference.py`` writes them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import checks
from .connections import check as check_connection
from .connections import extra_weights as weights_between
from .network import GRU, LSTM, RNN_RELU, RNN_TANH, sequence
from .reference import Variant, extra_weights, gates_of
from .step import step
from .variants import of_nonlinearity, regularised, variant

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .calls import HiddenRegularisation, Regularisation

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_relu", "rnn_relu_cell", "rnn_tanh", "rnn_tanh_cell"]

Input = TypeVar("Input", Tensor, PackedSequence)
Maybe = Tensor | None


def lstm(
    input: Input,
    hx: Sequence[Tensor] | None,
    params: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    recompute: bool = False,
    reset: Input | None = None,
    reset_to: str = "zero",
    gate_activation: str = "sigmoid",
    activation: str = "tanh",
    peephole: bool = False,
    coupled_gates: bool = False,
    layer_norm: bool = False,
    lengths: Tensor | None = None,
    cells: bool = False,
    connection: str | None = None,
    **regularisation: Unpack[Regularisation],
) -> tuple[Any, tuple[Tensor, Tensor]]:
    """A stacked, optionally bidirectional LSTM, as ``torch.nn.LSTM`` computes it.

    Formula: Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; with ``w_hr`` the projection of
    Sak et al. 2014. Sizes: T steps, B rows, I features, H hidden, P projected, R = P or H, L layers, D directions.

    Args:
        input: [T, B, I], with ``batch_first`` [B, T, I], unbatched [T, I], or a PackedSequence.
        hx: (h0, c0) or None for zeros; h0 [L*D, B, R] and c0 [L*D, B, H], unbatched without B.
        params: for each layer, and in it each direction, w_ih [4*H, I], w_hh [4*H, R], then b_ih and b_hh [4*H]
            (both or none), then w_hr [P, H] if there is a projection, then w_ch [3*H] with ``peephole``, then with
            ``layer_norm`` gains ln_ih and ln_hh [4*H], gain ln_ch and shift ln_ch_shift [H]; in an upper layer I is
            D*R, in layer k of a dense stack I + k*D*R. With ``coupled_gates`` 3*H and 2*H in place of 4*H
            and 3*H. After those of all layers, with ``connection="highway"``, w_hw [D*R, D*R] and b_hw [D*R] of each
            layer but the first.
        dropout: the probability with which outputs of all layers but the last are zeroed while ``training``.
        recompute: keep the states alone for the backward, which then computes the gates again (see
            :class:`fused_rnn.LSTM`).
        reset: bool, where episodes begin and the state is cleared, to zero or, with ``reset_to="initial"``, to hx:
            [T, B], with ``batch_first`` [B, T], unbatched [T], or a PackedSequence (see :class:`fused_rnn.LSTM`).
        gate_activation, activation, peephole, coupled_gates, layer_norm: variants of the cell (see
            :class:`fused_rnn.LSTM`).
        lengths: integers [B] on any device, unbatched []: the steps of each row, where the input is no PackedSequence
            (see :class:`fused_rnn.LSTM`).
        cells: return c of every step too.
        connection: between the layers, "residual", "dense" or "highway" (docs/connections.md).
        regularisation: rates of dropout and zoneout, drawn while ``training``, and bounds of gradients between steps
            (see :class:`fused_rnn.LSTM`).

    All tensors have one dtype: float32, float64, bfloat16, float16 (others where torch's own functions take them).

    Returns:
        (output, (h_n, c_n)), the output [T, B, D*R] in the layout of ``input``, or a PackedSequence. With ``cells``
        ((output, c), (h_n, c_n)), c [T, B, D*H] of the last layer in the same layout.

    Raises:
        ValueError: a rank other than 2 or 3, an input dtype that is not that of the params, a wrong number of params,
            no layers, another ``reset_to``, an activation of another name, lengths beside a PackedSequence, a rate that
            is no probability.
        TypeError: a reset that is not bool, or not packed where the input is; lengths that are no integers.
        RuntimeError: sizes or dtypes of input, states, reset or lengths that do not fit; a sequence of no steps.
    """
    options = (num_layers, bidirectional, batch_first, dropout, training, recompute, reset, reset_to, connection)
    own = {"peephole": peephole, "coupled_gates": coupled_gates, "layer_norm": layer_norm}
    cell = variant(gate_activation, activation, **own)
    return _functional(LSTM, input, hx, params, *options, cell, lengths, regularisation, cells)


def gru(
    input: Input,
    hx: Tensor | None,
    params: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    recompute: bool = False,
    reset: Input | None = None,
    reset_to: str = "zero",
    gate_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = True,
    layer_norm: bool = False,
    lengths: Tensor | None = None,
    connection: str | None = None,
    **regularisation: Unpack[HiddenRegularisation],
) -> tuple[Input, Tensor]:
    """A stacked, optionally bidirectional GRU, as ``torch.nn.GRU`` computes it: (output, h_n).

    Formula: Cho et al. 2014 with the reset gate after the product, n = tanh(W_in x + b_in + r (W_hn h + b_hn)), or with
    ``reset_after=False`` before it, n = tanh(W_in x + b_in + W_hn (r h) + b_hn).
    Weights are w_ih [3*H, I], w_hh [3*H, H], b_ih and b_hh [3*H]; hx is h0 [L*D, B, H] or None for zeros.
    Arguments, dtypes and errors otherwise as in :func:`lstm`.
    """
    options = (num_layers, bidirectional, batch_first, dropout, training, recompute, reset, reset_to, connection)
    cell = variant(gate_activation, activation, reset_after=reset_after, layer_norm=layer_norm)
    return _functional(GRU, input, hx, params, *options, cell, lengths, regularisation)


def rnn_tanh(
    input: Input,
    hx: Tensor | None,
    params: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    recompute: bool = False,
    reset: Input | None = None,
    reset_to: str = "zero",
    lengths: Tensor | None = None,
    connection: str | None = None,
    **regularisation: Unpack[HiddenRegularisation],
) -> tuple[Input, Tensor]:
    """A stacked, optionally bidirectional Elman network with tanh, as ``torch.nn.RNN`` computes it: (output, h_n).

    Formula: Elman 1990, h' = tanh(W_ih x + b_ih + W_hh h + b_hh). Weights are w_ih [H, I], w_hh [H, H], b_ih and
    b_hh [H]; hx is h0 [L*D, B, H] or None for zeros. Arguments, dtypes and errors otherwise as in :func:`lstm`.
    """
    options = (num_layers, bidirectional, batch_first, dropout, training, recompute, reset, reset_to, connection)
    return _functional(RNN_TANH, input, hx, params, *options, None, lengths, regularisation)


def rnn_relu(
    input: Input,
    hx: Tensor | None,
    params: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    recompute: bool = False,
    reset: Input | None = None,
    reset_to: str = "zero",
    lengths: Tensor | None = None,
    connection: str | None = None,
    **regularisation: Unpack[HiddenRegularisation],
) -> tuple[Input, Tensor]:
    """The same with relu in place of tanh; see :func:`rnn_tanh`."""
    options = (num_layers, bidirectional, batch_first, dropout, training, recompute, reset, reset_to, connection)
    return _functional(RNN_RELU, input, hx, params, *options, None, lengths, regularisation)


def rnn(
    input: Input,
    hx: Tensor | None,
    params: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    recompute: bool = False,
    reset: Input | None = None,
    reset_to: str = "zero",
    layer_norm: bool = False,
    lengths: Tensor | None = None,
    connection: str | None = None,
    **regularisation: Unpack[HiddenRegularisation],
) -> tuple[Input, Tensor]:
    """A stacked, optionally bidirectional Elman network with any activation that :class:`fused_rnn.LSTM` names; else as
    :func:`rnn_tanh`.

    Raises:
        ValueError: also for a ``nonlinearity`` of another name.
    """
    cell, variant = of_nonlinearity(nonlinearity, layer_norm)
    options = (num_layers, bidirectional, batch_first, dropout, training, recompute, reset, reset_to, connection)
    return _functional(cell, input, hx, params, *options, variant, lengths, regularisation)


def _functional(
    cell: int,
    input: Any,
    hx: Any,
    params: Sequence[Tensor],
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    training: bool,
    recompute: bool,
    reset: Any,
    reset_to: str,
    connection: str | None,
    variant: Variant | None,
    lengths: Any,
    regularisation: Mapping[str, Any],
    cells: bool = False,
) -> Any:
    drops = None
    if regularisation:
        variant, drops = regularised(variant, regularisation, cell == LSTM)
    if num_layers < 1:
        raise checks.layer_count()
    directions = 2 if bidirectional else 1
    check_connection(connection)
    each, rest = divmod(len(params) - weights_between(connection, num_layers), num_layers * directions)
    own = extra_weights(cell, variant)
    each -= len(own)
    projected = cell == LSTM and each in (3, 5)
    if rest or not (projected or each in (2, 4)):
        raise checks.param_count(len(params), num_layers, directions, own, connection == "highway")
    for name, weight in zip(("w_ih", "w_hh"), params, strict=False):
        if weight.dim() != 2:
            raise checks.weight_rank(name, weight)
    hidden = params[0].shape[0] // gates_of(cell, variant)
    features = params[0].shape[1]
    projection = params[1].shape[1] if projected else 0
    shape = (features, hidden, projection, num_layers, directions, batch_first, dropout, training, recompute)
    return sequence(cell, input, hx, params, *shape, reset, reset_to, variant, lengths, cells, connection, drops)


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Maybe = None,
    b_hh: Maybe = None,
) -> tuple[Tensor, Tensor]:
    """One LSTM step, formula and gate order as :func:`lstm`: (h, c), each [B, H].

    input [B, I], hx = (h [B, H], c [B, H]), w_ih [4*H, I], w_hh [4*H, H], b_ih and b_hh [4*H] or None.
    RuntimeError for sizes or dtypes that do not fit each other, in torch's words.
    """
    return step(LSTM, input, hx, w_ih, w_hh, b_ih, b_hh)


def gru_cell(input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Maybe = None, b_hh: Maybe = None) -> Tensor:
    """One GRU step, formula and gate order as :func:`gru`: h [B, H].

    input [B, I], hx [B, H], w_ih [3*H, I], w_hh [3*H, H], b_ih and b_hh [3*H] or None. Errors as :func:`lstm_cell`.
    """
    return step(GRU, input, hx, w_ih, w_hh, b_ih, b_hh)


def rnn_tanh_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Maybe = None, b_hh: Maybe = None
) -> Tensor:
    """One step of an Elman network, tanh(x W_ih^T + b_ih + h W_hh^T + b_hh): h [B, H].

    input [B, I], hx [B, H], w_ih [H, I], w_hh [H, H], b_ih and b_hh [H] or None. Errors as :func:`lstm_cell`.
    """
    return step(RNN_TANH, input, hx, w_ih, w_hh, b_ih, b_hh)


def rnn_relu_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Maybe = None, b_hh: Maybe = None
) -> Tensor:
    """The same with relu in place of tanh; see :func:`rnn_tanh_cell`."""
    return step(RNN_RELU, input, hx, w_ih, w_hh, b_ih, b_hh)
