"""Layer upon layer: one call of a function of layers after the other, with what goes between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import checks, connections, fallback, onnx_nodes, reference
from .autograd import layer, layers_at_once
from .dropout import Drops, Rows, draw_seeds, dropped_for_all_steps, dropped_weights
from .recording import LayerRecord
from .reference import Cell, Variant

__all__ = ["Net", "OneLayer", "by_reference", "distinct", "stack"]

Maybe = Tensor | None
# A plain int and a bound function: every look-up saved is 50 ns of each call.
_LSTM = int(Cell.LSTM)
_is_compiling = torch.compiler.is_compiling
OneLayer = Callable[..., tuple[Tensor, Tensor, Maybe, Maybe]]
# cell, B, H, P or 0, layers, directions, dropout, training, recompute, reset_initial, variant, connection, drops
Net = tuple[int, int, int, int, int, int, float, bool, bool, bool, Variant | None, str | None, Drops | None]


def by_reference(
    x: Tensor,
    h0: Tensor,
    c0: Maybe,
    weights: Sequence[Tensor],
    batch_sizes: Maybe,
    cell: int,
    recompute: bool,
    reset: Maybe,
    reset_initial: bool,
    variant: Variant | None,
    seed: Maybe,
    cells: bool,
    record: LayerRecord | None = None,
) -> tuple[Tensor, Tensor, Maybe, Maybe]:
    """``autograd.layer`` for what has neither kernels nor a function of torch's."""
    if onnx_nodes.exporting():  # which would record one step after the other, as many as there are now
        raise checks.onnx_without_kernels() if reset is None else checks.onnx_reset()
    if variant is not None and variant.clip_value and x.is_complex():
        raise checks.complex_clip()
    options = (reset, reset_initial, variant, seed, cells, record)
    return reference.layer(x, h0, c0, weights, batch_sizes, cell, None, *options)


def stack(
    one: OneLayer,
    net: Net,
    x: Tensor,
    h0: Maybe,
    c0: Maybe,
    weights: Sequence[Tensor],
    rows: Rows,
    reset: Maybe,
    cells: bool,
) -> tuple[Tensor, Tensor, Maybe, Maybe]:
    """Layer upon layer, each a call of ``one``: x [T, B, I] or packed [N, I]; reset [T, B] or [N]; h0 [L*D, B, R] and
    c0 [L*D, B, H], or None for zeros. c of every step is the last layer's."""
    cell, batch, hidden, projection, layers, directions, dropout, training, recompute, *_ = net
    initial, variant, connection, drops = net[9:]
    options = (rows.batch_sizes, cell, recompute, reset, initial, variant)
    own = h0 is not None
    if h0 is None:  # one layer's, which all share
        h0 = x.new_zeros((directions, batch, projection or hidden))
        if cell == _LSTM:
            c0 = x.new_zeros((directions, batch, hidden)) if projection else h0
    if _is_compiling():
        x, h0, c0, *weights = distinct((x, h0, c0, *weights))
        if not own and onnx_nodes.exporting() and one not in (fallback.layer, by_reference):
            # The op would have to be given the zeros.
            one = partial(onnx_nodes.layer if one is layer else one, zero_states=True)
    seeds: Sequence[Maybe] = (None,) * layers
    if training and variant is not None and variant.draws:
        seeds = draw_seeds(rows, layers, directions, x.device)
    if drops is not None:
        x = dropped_for_all_steps(x, drops.input, rows) if drops.input else x
        each = _weights_of_each(weights, connection, layers)
        weights = dropped_weights(weights, drops.weight, each // directions, layers * directions)
    if layers == 1:
        return one(x, h0, c0, weights, *options, seeds[0], cells)
    each = _weights_of_each(weights, connection, layers)
    if one is layer and directions == 1 and not (cells or connection or (dropout and training)) and seeds[0] is None:
        made = layers_at_once(x, h0, c0, weights, rows.batch_sizes, cell, layers, reset, initial, variant)
        if made is not None:
            return *made, None
    h0s = h0.split(directions) if own else (h0,) * layers
    c0s = c0.split(directions) if own and c0 is not None else (c0,) * layers
    hn: list[Any] = []
    cn: list[Any] = []
    for i in range(layers):
        inputs = (x, h0s[i], c0s[i], weights[i * each : (i + 1) * each], *options)
        y, h, c, every_c = one(*inputs, seeds[i], cells and i == layers - 1)
        hn.append(h)
        cn.append(c)
        if dropout and training and i < layers - 1:
            if drops is not None and drops.variational:
                y = dropped_for_all_steps(y, dropout, rows)
            else:
                y = torch.dropout(y, dropout, True)  # as torch's own loop calls it: the same masks from the same seed
        x = y if connection is None else connections.join(connection, i, layers, x, y, weights[layers * each :])
    return x, torch.cat(hn), None if c0 is None else torch.cat(cn), every_c


def _weights_of_each(weights: Sequence[Tensor], connection: str | None, layers: int) -> int:
    """How many tensors a layer has, all its directions."""
    return (len(weights) - connections.extra_weights(connection, layers)) // layers


def distinct(tensors: Sequence[Any]) -> list[Any]:
    """The same tensors, every further use of one as a view of it: Dynamo refuses a Function that is given one twice."""
    result: list[Any] = []
    for tensor in tensors:
        again = tensor is not None and any(tensor is other for other in result)
        result.append(tensor.view_as(tensor) if again else tensor)
    return result
