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
from .layouts import Layer
from .onnx_forms import attributes, node_weights, peepholes, shifts, written
from .reference import Cell, Variant, split_weights

__all__ = ["exporting", "layer", "op"]

Maybe = Tensor | None
_NODES: dict[int, str] = {Cell.LSTM: "LSTM", Cell.GRU: "GRU", Cell.RNN_TANH: "RNN", Cell.RNN_RELU: "RNN"}
_DTYPES = {torch.float16, torch.float32, torch.float64}


@torch.compiler.assume_constant_result
def exporting() -> bool:
    """Whether an ONNX exporter is at work. (Dynamo, its second attempt, would take torch's own function for False.)"""
    return torch.onnx.is_in_onnx_export()


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
    variant: Variant | None = None,
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
    if variant is not None and variant.recurrent_dropout:  # left out of it in evaluation
        raise checks.onnx_drawn()
    variant = None if variant is None else variant.of_outputs()
    if cells:
        raise checks.onnx_cells()
    if x.dtype not in _DTYPES:
        raise checks.onnx_dtype(x.dtype)
    own = [written(each, variant) for each in split_weights(weights, h0.shape[0], cell, variant)]
    made = attributes(cell, variant, len(own), own[0].w_ih.shape[0] // Cell(cell).gates)
    states: tuple[Maybe, Maybe] = (None, None) if zero_states else (h0, c0)
    if shifts(variant):
        states = ((h0 + 1) / 2, c0)
    steps = None if lengths is None else lengths.to(torch.int32)
    y, hn, cn = (_node if own[0].w_hr is None else _projected)(x, *states, own, _NODES[cell], made, steps)
    if shifts(variant):
        y, hn = 2 * y - 1, 2 * hn - 1
    return y.squeeze(1) if len(own) == 1 else y.transpose(1, 2).flatten(2), hn, cn, None


def op(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    cell: int,
    save: int,
    split_f32: bool = False,
    reset: Tensor | None = None,
    reset_initial: bool = False,
    variant: Sequence[float] | None = None,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op in a graph for ONNX: the same without ``saved``, as nothing is differentiated there."""
    made = None if variant is None else Variant.of(variant)
    y, hn, cn, _ = layer(x, h0, c0, weights, batch_sizes, cell, reset=reset, variant=made)
    return y, hn, x.new_empty(0) if cn is None else cn, x.new_empty(0)


def _node(
    x: Tensor, h0: Maybe, c0: Maybe, own: Layer, name: str, attributes: dict[str, Any], lengths: Maybe
) -> tuple[Tensor, Tensor, Maybe]:
    """Y [T, D, B, H], Y_h [D, B, H] and Y_c [D, B, H] (LSTM)."""
    states = (h0, c0) if name == "LSTM" else (h0,)
    state = (len(own), x.shape[1], own[0].w_hh.shape[1])
    p = peepholes(own)
    y, hn, *cn = torch.onnx.ops.symbolic_multi_out(
        name,
        (x, *node_weights(own), lengths, *states, *(() if p is None else (p,))),
        attributes,
        dtypes=[x.dtype] * (1 + len(states)),
        shapes=[(x.shape[0], *state), *[state] * len(states)],
    )
    return y, hn, cn[0] if cn else None


def _projected(
    x: Tensor, h0: Maybe, c0: Maybe, own: Layer, name: str, attributes: dict[str, Any], lengths: Maybe
) -> tuple[Tensor, Tensor, Maybe]:
    """Y [T, D, B, P], Y_h [D, B, P] and Y_c [D, B, H]. ONNX has no projection, but an LSTM of the same H computes it.

    Call m_t = o tanh(c_t) what comes before it, h_t = W_hr m_t. As W_hh h_{t-1} = (W_hh W_hr) m_{t-1}, a node with
    R = W_hh W_hr gives all m_t. A given h0 is no m's; W_hh h0 enters the first step by further features of x, which are
    zero at all other steps.
    """
    directions, rest = len(own), x.shape[0] - 1
    w_hr = torch.stack([weights.w_hr for weights in own if weights.w_hr is not None]).transpose(1, 2)  # [D, H, P]
    if h0 is not None:
        first = [pad(h0[:1], (0, 0, 0, 0, 0, rest)), pad(h0[1:], (0, 0, 0, 0, rest, 0))]  # in reverse the last
        if lengths is not None and directions == 2:  # of each row
            last = torch.arange(x.shape[0], device=x.device).unsqueeze(1) == lengths - 1
            first[1] = torch.where(last.unsqueeze(-1), h0[1:], 0)
        x = torch.cat([x, *first[:directions]], 2)
    plain = []
    for d, weights in enumerate(own):
        w_ih = [weights.w_ih]
        if h0 is not None:
            w_ih += [weights.w_hh if d == other else torch.zeros_like(weights.w_hh) for other in range(directions)]
        r = weights.w_hh @ w_hr[d].t()
        plain.append(weights._replace(w_ih=torch.cat(w_ih, 1), w_hh=r, w_hr=None))
    m, mn, cn = _node(x, None, c0, plain, name, attributes, lengths)
    return m @ w_hr, mn @ w_hr, cn
