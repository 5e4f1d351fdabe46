"""What regularises a recurrence, in plain torch: the part of the specification (``reference.py``) that stands between
the steps of a cell. Equations, papers and what users see of it: docs/regularisation.md, docs/gradient_clipping.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .philox import Draw, happens

__all__ = ["clipped", "recurrent_mask", "seen", "with_clip", "with_dropout", "with_zoneout"]

State = tuple[Tensor, ...]


def recurrent_mask(seeds: Tensor | None, p: float, like: Tensor) -> Tensor | None:
    """By which h is multiplied on its way to W_hh, for the whole of a call; None without seeds or where p is 0.

    Gal & Ghahramani 2016: a unit is 0 with probability p, else what keeps the mean. seeds [B], like [B, R] -> [B, R].
    """
    if seeds is None or not p:
        return None
    (dropped,) = happens(seeds, 1, like.shape[-1], Draw.RECURRENT_DROPOUT, (p,))
    wide = torch.float64 if like.dtype in (torch.float64, torch.complex128) else torch.float32  # not 16 bits
    kept = torch.full((), 0.0 if p == 1 else 1 / (1 - p), dtype=wide, device=like.device)
    return torch.where(dropped[0], 0, kept)


def seen(h: Tensor, mask: Tensor | None) -> Tensor:
    """What W_hh sees of h [n, R]. What is dropped is replaced: a product with zero would keep NaN."""
    if mask is None:
        return h
    own = mask[: h.shape[0]]
    return torch.where(own == 0, 0, h * own).to(h.dtype)


def with_dropout(
    step: Callable[..., State], mask: Tensor | None, apart: Callable[[int, State], tuple[Tensor, State]] | None
) -> Callable[..., State]:
    """``step(state, t, seen_h, *inputs)`` as ``dropped(state, t, *inputs)``: it is given what W_hh sees of h.

    ``apart(t, state)`` gives h for W_hh, and the state for all that goes past it.
    """

    def dropped(state: State, t: int, *inputs: Tensor | None) -> State:
        h, state = (state[0], state) if apart is None else apart(t, state)
        return step(state, t, seen(h, mask), *inputs)

    return dropped


def with_zoneout(
    step: Callable[..., State], chances: tuple[float, float], seeds: Tensor | None, initial: State, steps: int
) -> Callable[..., State]:
    """``step(state, *inputs)`` as ``zoned(state, t, *inputs)``, after which units keep some of their old state.

    Krueger et al. 2017: all of it with the given probabilities (of h, of c), as drawn from ``seeds`` [B]; without
    seeds as much of it as they do on average. ``initial`` tells the sizes of the states, [B, ..].
    """
    if not any(chances):
        return lambda state, t, *inputs: step(state, *inputs)
    drawn = None
    if seeds is not None:
        drawn = [
            happens(seeds, steps, s.shape[-1], Draw.ZONEOUT, chances)[which].unbind() for which, s in enumerate(initial)
        ]

    def kept(which: int, t: int, old: Tensor, new: Tensor) -> Tensor:
        p = chances[which]
        if not p:
            return new
        if drawn is not None:
            return torch.where(drawn[which][t][: old.shape[0]], old, new)
        if p == 1:  # chosen, as what is drawn: a product with zero would keep NaN
            return torch.where(torch.ones_like(old, dtype=torch.bool), old, new)
        return p * old + (1 - p) * new

    def zoned(state: State, t: int, *inputs: Tensor | None) -> State:
        new = step(state, *inputs)
        return tuple(kept(which, t, *values) for which, values in enumerate(zip(state, new, strict=True)))

    return zoned


def clipped(gradient: Tensor, by_value: float, by_norm: float) -> Tensor:
    """Each element of ``gradient`` [n, H] at most ``by_value``, then each row's norm at most ``by_norm``; 0: no bound.

    The derivative, for those of higher order, is that of these functions: 0 for an element that is cut off, and for a
    row that is scaled the projection that is orthogonal to it.
    """
    if by_value and by_value <= torch.finfo(gradient.dtype).max:
        gradient = gradient.clamp(-by_value, by_value)
    if by_norm:
        widest = torch.float32 if gradient.device.type == "mps" else torch.float64  # which MPS has not
        wide = torch.promote_types(gradient.dtype, widest)  # for squares
        over = torch.linalg.vector_norm(gradient.detach(), dim=-1, keepdim=True, dtype=wide) > by_norm
        # Of rows that are scaled, as at zero a norm has no derivative; in operations that have all of theirs.
        longer = torch.where(over, gradient, 1).to(wide)
        norm = (longer * longer.conj()).real.sum(-1, keepdim=True).sqrt()
        gradient = gradient * torch.where(over, by_norm / norm, 1).to(gradient.dtype)
    return gradient


class _Levels:
    """Those of ``torch.func`` that differentiate one state. (No list: each level would be given a copy.)"""

    innermost: object = None


class _ClippedGradient(Function):
    """(state, by_value, by_norm, levels) -> the same state; what a backward brings to it is clipped.

    Where ``torch.func`` differentiates a gradient, each level has a node of its own for this, the outermost first. The
    innermost makes the gradient; to the others, which differentiate it, the state is the same state and no more.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(state: Tensor, by_value: float, by_norm: float, levels: _Levels) -> Tensor:
        return state.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, *ctx.bounds, ctx.levels = inputs
        ctx.level = ctx.levels.innermost = object()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.level is ctx.levels.innermost:
            gradient = clipped(gradient, *ctx.bounds)
        return gradient, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        with forward_ad._set_fwd_grad_enabled(True):  # for outer levels: see higher_order.pushforward
            return tangent.clone()


def with_clip(step: Callable[..., State], by_value: float, by_norm: float) -> Callable[..., State]:
    """The step, of whose gradients by the state it begins from each row of h, and of c, is clipped."""
    if torch.jit.is_tracing():
        warnings.warn("fused_rnn: a trace has no clipped gradients", torch.jit.TracerWarning, stacklevel=2)
        return step

    def step_with_clip(state: State, *inputs: Any) -> State:
        return step(tuple(_ClippedGradient.apply(s, by_value, by_norm, _Levels()) for s in state), *inputs)

    return step_with_clip
