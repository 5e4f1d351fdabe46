"""How a mapped axis (``torch.vmap``) becomes more rows of the batch, and how weight gradients are kept apart again.

A mapped axis V is folded innermost, row b of example v becoming row b*V + v: then the steps of a packed sequence stay
contiguous (``batch_sizes * V``), and y and what the forward saved unfold as views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .reference import Cell, Variant, Weights, activations, gates_of, split_weights
from .regularisation import recurrent_mask, seen

__all__ = ["Constants", "fold", "folded_lengths", "loop", "sample_gradients", "unfold"]


class Constants(NamedTuple):
    """What a backward is given that nothing is differentiated by."""

    batch_sizes: Tensor | None
    reset: Tensor | None
    seed: Tensor | None
    cell: int
    needs: int  # bits as the op's
    samples: int  # V where the batch holds V examples and weight gradients are to be of each, else 0
    reset_initial: bool
    variant: Variant | None

    def lengths_of_one(self) -> Tensor | None:
        """``batch_sizes`` of a single example."""
        return None if self.batch_sizes is None else self.batch_sizes // self.samples


def mapped_size(info: Any) -> int:
    """Of the axis that vmap maps over."""
    if not info.batch_size:
        raise NotImplementedError("fused_rnn: vmap over an axis of size 0 is not supported")
    return info.batch_size


def fold(tensor: Tensor | None, mapped: int | None, rows: int, size: int) -> Tensor | None:
    """The axis ``mapped`` of ``size`` (None: repeat) into dimension ``rows``: [.., B, ..] -> [.., B*V, ..]."""
    if tensor is None:
        return None
    if mapped is None:
        tensor = tensor.unsqueeze(rows + 1)
        tensor = tensor.expand(*tensor.shape[: rows + 1], size, *tensor.shape[rows + 2 :])
    else:
        tensor = tensor.movedim(mapped, rows + 1)
    return tensor.flatten(rows, rows + 1)


def unfold(tensor: Tensor | None, rows: int, size: int) -> Tensor | None:
    """[.., B*V, ..] -> [.., B, V, ..], a view; the mapped axis is ``rows + 1``."""
    return None if tensor is None else tensor.unflatten(rows, (tensor.shape[rows] // size, size))


def loop(apply: Callable, size: int, in_dims: Sequence[int | None], args: Sequence) -> tuple[tuple, tuple]:
    """The vmap rule where weights are mapped: one call for each example, as each has its own matrices."""
    every = []
    for v in range(size):
        every.append(
            apply(*(a.select(dim, v) if isinstance(dim, int) else a for a, dim in zip(args, in_dims, strict=True)))
        )
    stacked = tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*every, strict=True))
    return stacked, tuple(None if part is None else 0 for part in stacked)


def folded_lengths(batch_sizes: Tensor | None, mapped: int | None, size: int) -> Tensor | None:
    if mapped is not None:
        raise NotImplementedError("fused_rnn: vmap over the batch sizes of a packed sequence is not supported")
    return None if batch_sizes is None else batch_sizes * size


def _previous(h: Tensor, h0: Tensor, batch_sizes: Tensor | None, reverse: bool) -> Tensor:
    """What the row before has, of the N rows: h [N, V, ..] of each row, h0 [B, V, ..] before the first ones."""
    rows, batch = h.shape[0], h0.shape[0]
    if batch_sizes is None:
        return torch.cat([h[batch:], h0] if reverse else [h0, h])[:rows]
    alike = torch.cat([h0, h])  # row n of the sequence is row batch + n here
    own = torch.arange(rows, device=batch_sizes.device)
    if not reverse:  # one step earlier, row b lies batch_sizes[t - 1] above
        before = torch.cat([batch_sizes.new_full((1,), batch), batch_sizes[:-1]])
        return alike[batch + own - before.repeat_interleave(batch_sizes)]
    after = torch.cat([batch_sizes[1:], batch_sizes.new_zeros(1)]).repeat_interleave(batch_sizes)
    begins = (batch_sizes.cumsum(0) - batch_sizes).repeat_interleave(batch_sizes)
    row = own - begins
    following = batch + own + batch_sizes.repeat_interleave(batch_sizes)
    return alike[torch.where(row < after, following, row)]


def _before(h: Tensor, h0: Tensor, batch_sizes: Tensor | None, reverse: bool, constants: Constants) -> Tensor:
    """h (or c) that each row started from: h [N, V, R] that it left, h0 [B*V, R] -> [N, V, R]."""
    h0 = h0.unflatten(0, (-1, h.shape[1]))
    before = _previous(h, h0, batch_sizes, reverse)
    if constants.reset is None:
        return before
    begins = constants.reset.reshape(before.shape[:2])
    if reverse:  # where the row before, one step later, is an episode's first
        begins = _previous(begins, begins.new_zeros(h0.shape[:2]), batch_sizes, reverse)
    anew = _at_every_step(h0, len(before), batch_sizes) if constants.reset_initial else before.new_zeros(())
    return torch.where(begins.unsqueeze(-1), anew, before)


def _at_every_step(of_rows: Tensor, rows: int, batch_sizes: Tensor | None) -> Tensor:
    """What each row of the batch has at all steps: [B, V, ..] -> [N, V, ..], N = ``rows``."""
    if batch_sizes is None:
        return of_rows.repeat(rows // max(1, len(of_rows)), 1, 1)
    steps = (batch_sizes.cumsum(0) - batch_sizes).repeat_interleave(batch_sizes)
    return of_rows[torch.arange(rows, device=steps.device) - steps]


def _gate(x: Tensor, h: Tensor, own: Weights, rows: slice) -> Tensor:
    """What a gate is the activation of, where states alone were kept; ``rows`` are its weights' (peepholes apart).

    x [N, V, I], h of the step before [N, V, R] -> [N, V, H].
    """
    gate = x @ own.w_ih[rows].T + h @ own.w_hh[rows].T
    return gate if own.b_ih is None or own.b_hh is None else gate + (own.b_ih + own.b_hh)[rows]


def _summed(of: Tensor, by: Tensor | None) -> Tensor:
    """[N, V, A] -> [V, A], or with ``by`` [N, V, B] the sum of outer products, [V, A, B]."""
    return of.sum(0) if by is None else torch.einsum("nva,nvb->vab", of, by)


def sample_gradients(
    gates: Sequence[Tensor],
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    y: Tensor,
    saved: Tensor,
    constants: Constants,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """dx and the weight gradients of each of the V examples folded into the batch.

    ``gates`` are dgx, dgh, dr of ``layer_backward_gates``. Not for an LSTM that zones c out and has gradients that need
    the c its output gate saw, which is not kept.
    Returns dx [.., B*V, I] and, weight by weight, [V, *weight.shape] or None.
    """
    cell, needs, size = Cell(constants.cell), constants.needs, constants.samples
    batch_sizes = constants.lengths_of_one()
    gate, state = activations(cell, constants.variant)
    reset_before = constants.variant is not None and constants.variant.reset_before
    directions = h0.shape[0]
    each = len(weights) // directions
    dx: Tensor | None = None
    dweights: list[Tensor | None] = []
    # [N*V, D*K] -> for each direction [N, V, K]; what the cell does not have is [0] and stays so
    dgx, dgh, dr = (g.unflatten(0, (-1, size)).chunk(directions, -1) if g.dim() == 2 else (g,) for g in gates)
    for d, own in enumerate(split_weights(weights, directions, cell, constants.variant)):
        of_x = of_h = dgx[d]
        hidden = of_x.shape[-1] // gates_of(cell, constants.variant)
        if cell.is_gru and not reset_before:  # W_hn h + b_hn stands inside the reset product
            of_h = torch.cat([of_x[..., : 2 * hidden], dgh[d]], -1)
        inner = saved[d].unflatten(0, (-1, size))  # [N, V, S*H]
        h = y.reshape(-1, size, y.shape[-1]).chunk(directions, -1)[d]
        h = _before(h, h0[d], batch_sizes, d == 1, constants)
        if constants.seed is not None and constants.variant is not None:
            mask = recurrent_mask(constants.seed[d], constants.variant.recurrent_dropout, h0[d])
            if mask is not None:
                h = seen(h, _at_every_step(mask.unflatten(0, (-1, size)), len(h), batch_sizes))
        rows = x.reshape(-1, size, x.shape[-1])
        kept = inner.shape[-1] > (hidden if cell.is_lstm else 0)  # gates
        factors: dict[int, tuple[Tensor, Tensor | None]] = {0: (of_x, rows), 1: (of_h, h)}
        if own.b_ih is not None:
            factors |= {2: (of_x, None), 3: (of_h, None)}
        c = inner[..., -hidden:]
        if own.w_hr is not None:
            o = inner[..., -2 * hidden : -hidden]
            if not kept:
                o = _gate(rows, h, own, slice(-hidden, None))
                o = gate(o if own.w_ch is None else o + own.w_ch[-hidden:] * c)
            factors[len(factors)] = (dr[d], o * state(c))
        if own.w_ch is not None and c0 is not None:
            *early, _, d_o = of_x.split(hidden, -1)  # of i, unless it is coupled, and f
            before = _before(c, c0[d], batch_sizes, d == 1, constants)
            factors[len(factors)] = (torch.cat([*(d * before for d in early), d_o * c], -1), None)
        for i, (of, by) in factors.items():
            wanted = needs >> 3 + d * each + i & 1
            if wanted and i == 1 and reset_before:  # n's rows of W_hh multiply r h
                r = inner[..., :hidden] if kept else gate(_gate(rows, h, own, slice(hidden)))
                parts = of.split([2 * hidden, hidden], -1)
                dweights.append(torch.cat([_summed(parts[0], h), _summed(parts[1], r * h)], 1))
            else:
                dweights.append(_summed(of, by) if wanted else None)
        if needs & 1:
            part = (of_x @ own.w_ih).view(x.shape)
            dx = part if dx is None else dx + part
    return dx, dweights
