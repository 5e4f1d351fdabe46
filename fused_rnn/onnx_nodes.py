"""A layer as ONNX has it: one ``LSTM``, ``GRU`` or ``RNN`` node for all its directions.

The nodes, their inputs and formulas: https://onnx.ai/onnx/operators/onnx__LSTM.html (GRU, RNN). Where
``torch.onnx.export`` traces a model they stand in the graph in place of the op, put there by
``torch.onnx.ops.symbolic_multi_out``, torch's own way for a model to name a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import checks
from .layouts import ONNX, TORCH, Layer, rows_of
from .reference import Cell, split_weights

__all__ = ["exporting", "layer", "node_weights"]

Maybe = Tensor | None
_NODES: dict[int, tuple[str, dict[str, Any]]] = {  # a cell's node, and the attributes with which it is torch's cell
    Cell.LSTM: ("LSTM", {}),
    Cell.GRU: ("GRU", {"linear_before_reset": 1}),
    Cell.RNN_TANH: ("RNN", {"activations": ["Tanh"]}),
    Cell.RNN_RELU: ("RNN", {"activations": ["Relu"]}),
}
_DTYPES = {torch.float16, torch.float32, torch.float64}


@torch.compiler.assume_constant_result
def exporting() -> bool:
    """Whether an ONNX exporter is at work. (Dynamo, its second attempt, would take torch's own function for False.)"""
    return torch.onnx.is_in_onnx_export()


def node_weights(own: Layer) -> tuple[Tensor, Tensor, Maybe]:
    """W [D, G*H, I], R [D, G*H, H] and B [D, 2*G*H] (None without biases) of a layer without projection."""

    def together(tensors: list[Tensor], order: Maybe) -> Tensor:
        rows = torch.cat(tensors).unflatten(0, (len(own), -1))
        return rows if order is None else rows.index_select(1, order)

    order = rows_of(own[0].w_hh, TORCH, ONNX)
    w = together([weights.w_ih for weights in own], order)
    r = together([weights.w_hh for weights in own], order)
    biases = [bias for weights in own for bias in (weights.b_ih, weights.b_hh) if bias is not None]
    if order is not None:
        order = torch.cat([order, order + len(order)])
    return w, r, together(biases, order) if biases else None


def layer(
    x: Tensor,
    h0: Tensor,
    c0: Maybe,
    weights: Sequence[Tensor],
    batch_sizes: Maybe,
    cell: int,
    recompute: bool = False,
    reset: Maybe = None,
    reset_initial: bool = False,
    variant: Any = None,
    seed: Maybe = None,
    cells: bool = False,
    *,
    lengths: Maybe = None,
    zero_states: bool = False,
) -> tuple[Tensor, Tensor, Maybe, Maybe]:
    """``autograd.layer`` for the graph of an ONNX exporter: the same arguments, shapes and results.

    lengths: integers [B], from 1 to T; outputs past them are what the runtime makes them. With ``zero_states`` the node
    is given none, which means zeros, and ``h0`` only tells their shape.
    """
    if batch_sizes is not None:
        raise checks.onnx_packed()
    if reset is not None:
        raise checks.onnx_reset()
    if variant is not None and variant.of_outputs() is not None:
        raise checks.onnx_variant()
    if cells:
        raise checks.onnx_cells()
    if x.dtype not in _DTYPES:
        raise checks.onnx_dtype(x.dtype)
    own = split_weights(weights, h0.shape[0])
    states: tuple[Maybe, Maybe] = (None, None) if zero_states else (h0, c0)
    steps = None if lengths is None else lengths.to(torch.int32)
    y, hn, cn = (_node if own[0].w_hr is None else _projected)(x, *states, own, cell, steps)
    return y.squeeze(1) if len(own) == 1 else y.transpose(1, 2).flatten(2), hn, cn, None


def _node(x: Tensor, h0: Maybe, c0: Maybe, own: Layer, cell: int, lengths: Maybe) -> tuple[Tensor, Tensor, Maybe]:
    """Y [T, D, B, H], Y_h [D, B, H] and Y_c [D, B, H] (LSTM)."""
    name, form = _NODES[cell]
    directions, hidden = len(own), own[0].w_hh.shape[1]
    attributes: dict[str, Any] = {"hidden_size": hidden, **form}
    if "activations" in form:
        attributes["activations"] = form["activations"] * directions
    if directions == 2:
        attributes["direction"] = "bidirectional"
    states = (h0, c0) if name == "LSTM" else (h0,)
    state = (directions, x.shape[1], hidden)
    y, hn, *cn = torch.onnx.ops.symbolic_multi_out(
        name,
        (x, *node_weights(own), lengths, *states),
        attributes,
        dtypes=[x.dtype] * (1 + len(states)),
        shapes=[(x.shape[0], *state), *[state] * len(states)],
    )
    return y, hn, cn[0] if cn else None


def _projected(x: Tensor, h0: Maybe, c0: Maybe, own: Layer, cell: int, lengths: Maybe) -> tuple[Tensor, Tensor, Maybe]:
    """Y [T, D, B, P], Y_h [D, B, P] and Y_c [D, B, H]. ONNX has no projection, but an LSTM of the same H computes it.

    Call m_t = o tanh(c_t) what comes before it, h_t = W_hr m_t. As W_hh h_{t-1} = (W_hh W_hr) m_{t-1}, a node with
    R = W_hh W_hr gives all m_t. A given h0 is no m's; W_hh h0 enters the first step by further features of x, which are
    zero at all other steps.
    """
    directions, rest = len(own), x.shape[0] - 1
    w_hr = torch.stack([weights.w_hr for weights in own if weights.w_hr is not None]).transpose(1, 2)  # [D, H, P]
    if h0 is not None:
        first = [pad(h0[:1], (0, 0, 0, 0, 0, rest)), pad(h0[1:], (0, 0, 0, 0, rest, 0))]  # in reverse the last
        if lengths is not None:  # of each row
            last = torch.arange(x.shape[0]).unsqueeze(1) == lengths - 1
            first[1] = torch.where(last.unsqueeze(-1), h0[1:], 0)
        x = torch.cat([x, *first[:directions]], 2)
    plain = []
    for d, weights in enumerate(own):
        w_ih = [weights.w_ih]
        if h0 is not None:
            w_ih += [weights.w_hh if d == other else torch.zeros_like(weights.w_hh) for other in range(directions)]
        r = weights.w_hh @ w_hr[d].t()
        plain.append(weights._replace(w_ih=torch.cat(w_ih, 1), w_hh=r, w_hr=None))
    m, mn, cn = _node(x, None, c0, plain, cell, lengths)
    return m @ w_hr, mn @ w_hr, cn
