"""The shapes of the ops' results, told to torch: for graphs, and for tensors on ``meta``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import checks
from .ops import Save, Square
from .reference import Cell, Variant, extra_weights, gates_of, kept_gates

__all__: list[str] = []


def _rows(x: Tensor) -> int | torch.SymInt:
    """N."""
    return x.shape[0] if x.dim() == 2 else x.shape[0] * x.shape[1]


def _hidden(weights: Sequence[Tensor], cell: int, variant: Variant) -> int | torch.SymInt:
    return weights[0].shape[0] // gates_of(cell, variant)


def _check_devices(x: Tensor, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor]) -> None:
    """Here, as torch comes here for a single tensor on meta, and would give memory that nothing has written to."""
    error = checks.elsewhere(x, (h0, c0), weights)
    if error is not None:
        raise error


@torch.library.register_fake("fused_rnn::layer_forward")
@torch.library.register_fake("fused_rnn::exported_layer")
def _(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    cell: int,
    save: int,
    split_f32: bool = False,
    reset: Tensor | None = None,
    reset_initial: bool = False,
    variant: Sequence[float] | None = None,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_devices(x, h0, c0, weights)
    directions, batch, features = h0.shape  # D, B, R
    made = Variant.of(variant)
    rows, hidden = _rows(x), _hidden(weights, cell, made)
    values = Cell(cell).is_lstm + (kept_gates(cell, made) if save == Save.ALL else 0)  # S
    return (
        x.new_empty(*x.shape[:-1], directions * features),
        x.new_empty(directions, batch, features),
        x.new_empty(directions, batch, hidden) if Cell(cell).is_lstm else x.new_empty(0),
        x.new_empty(directions, rows, values * hidden) if save != Save.NOTHING else x.new_empty(0),
    )


@torch.library.register_fake("fused_rnn::stack_forward")
def _(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    cell: int,
    layers: int,
    split_f32: bool = False,
    reset: Tensor | None = None,
    reset_initial: bool = False,
    variant: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_devices(x, h0, c0, weights)
    cn = x.new_empty(0) if c0 is None else x.new_empty(layers, *c0.shape[1:])
    return x.new_empty(*x.shape[:-1], h0.shape[2]), x.new_empty(layers, *h0.shape[1:]), cn


@torch.library.register_fake("fused_rnn::layer_backward")
def _(
    dy: Tensor | None,
    dhn: Tensor | None,
    dcn: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Tensor],
    y: Tensor,
    saved: Tensor,
    batch_sizes: Tensor | None,
    cell: int,
    needs: int,
    split_f32: bool = False,
    reset: Tensor | None = None,
    reset_initial: bool = False,
    variant: Sequence[float] | None = None,
    seed: Tensor | None = None,
    dcells: Tensor | None = None,
    tell: bool = False,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    def gradient(bit: int, of: Tensor | None) -> Tensor:
        return x.new_empty(of.shape if of is not None and needs >> bit & 1 else 0)

    dweights = [gradient(3 + i, weight) for i, weight in enumerate(weights)]
    if tell:
        dweights.append(x.new_empty((len(Square), h0.shape[0], _rows(x)), dtype=torch.float64))
    return gradient(0, x), gradient(1, h0), gradient(2, c0), dweights


@torch.library.register_fake("fused_rnn::layer_backward_gates")
def _(
    dy: Tensor | None,
    dhn: Tensor | None,
    dcn: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Tensor],
    y: Tensor,
    saved: Tensor,
    batch_sizes: Tensor | None,
    cell: int,
    split_f32: bool = False,
    reset: Tensor | None = None,
    reset_initial: bool = False,
    variant: Sequence[float] | None = None,
    seed: Tensor | None = None,
    dcells: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    directions = h0.shape[0]
    made = Variant.of(variant)
    rows, hidden = _rows(x), _hidden(weights, cell, made)
    projected = len(weights) // directions - len(extra_weights(cell, made)) in (3, 5)
    return (
        x.new_empty(h0.shape),
        x.new_empty(0) if c0 is None else x.new_empty(c0.shape),
        x.new_empty(rows, directions * weights[0].shape[0]),
        x.new_empty(rows, directions * hidden) if Cell(cell).is_gru and not made.reset_before else x.new_empty(0),
        x.new_empty(rows, directions * h0.shape[2]) if projected else x.new_empty(0),
    )


@torch.library.register_fake("fused_rnn::own_copies")
def _(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in tensors]
