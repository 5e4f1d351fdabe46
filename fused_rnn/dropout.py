"""What a call in training mode draws: the seeds of what time loops drop and keep, and dropout outside of them.

All of it comes from torch's generators. A row of the batch keeps what was drawn for it wherever a packed sequence, or
lengths, put it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import checks, onnx_nodes
from .transfer import sent

__all__ = ["Drops", "Rows", "draw_seeds", "dropped_for_all_steps", "dropped_weights"]

Maybe = Tensor | None


class Drops(NamedTuple):
    """Dropout outside of the loops, beside the one between layers (docs/regularisation.md)."""

    input: float = 0.0  # of features of the input, for all steps
    variational: bool = False  # whether that between layers is for all steps
    weight: float = 0.0  # of elements of W_hh


class Rows(NamedTuple):
    """Rows as a call has them."""

    batch: int  # B of the batch given
    order: Maybe  # which of these each row is; None: the one at its place
    batch_sizes: Maybe  # of each step, of packed rows


def draw_seeds(rows: Rows, layers: int, directions: int, device: torch.device) -> Sequence[Tensor]:
    """One for each row, int64 [D, B], layer by layer."""
    seeds = torch.randint(2**63 - 1, (layers, directions, rows.batch), device=device)
    return (seeds if rows.order is None else seeds.index_select(2, rows.order)).unbind()


def dropped_for_all_steps(x: Tensor, p: float, rows: Rows) -> Tensor:
    """Features of x [T, B, F] or [N, F] dropped with probability p, a row's at all steps or none.

    Gal & Ghahramani 2016.
    """
    _check_drawn_anew()
    wide = torch.float64 if x.dtype in (torch.float64, torch.complex128) else torch.float32  # not 16 bits
    mask = torch.dropout(torch.ones((rows.batch, x.shape[-1]), dtype=wide, device=x.device), p, True)
    mask = mask if rows.order is None else mask.index_select(0, rows.order)
    if rows.batch_sizes is not None:
        mask = mask.index_select(0, sent(_row_of_each(rows.batch_sizes, x.shape[0]), x.device))
    return (x * mask).to(x.dtype)


def _check_drawn_anew() -> None:
    """What depends on no input is a constant to an ONNX exporter, once it has been drawn."""
    if onnx_nodes.exporting():
        raise checks.onnx_drawn()


def _row_of_each(batch_sizes: Tensor, count: int) -> Tensor:
    """Of N = ``count`` packed rows."""
    firsts = (batch_sizes.cumsum(0) - batch_sizes).repeat_interleave(batch_sizes, output_size=count)
    return torch.arange(count, device=batch_sizes.device) - firsts


def dropped_weights(weights: Sequence[Tensor], p: float, each: int, count: int) -> Sequence[Tensor]:
    """Elements of every W_hh dropped with probability p (Merity et al. 2018, "Regularizing and optimizing LSTM language
    models"); ``each``: tensors of one of ``count`` directions."""
    if p:
        _check_drawn_anew()
    return [_dropped(w, p) if p and i % each == 1 and i < each * count else w for i, w in enumerate(weights)]


def _dropped(weight: Tensor, p: float) -> Tensor:
    if not weight.is_complex():  # of which torch's dropout knows nothing
        return torch.dropout(weight, p, True)
    return weight * torch.dropout(torch.ones_like(weight.real), p, True)
