"""What regularises a recurrence, in plain torch: the part of the specification (``reference.py``) that stands between
the steps of a cell. Equations, papers and what users see of it: docs/regularisation.md.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .philox import Draw, happens

__all__ = ["recurrent_mask", "seen", "with_zoneout"]

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


def with_zoneout(
    step: Callable[..., State], chances: tuple[float, float], seeds: Tensor | None, initial: State, steps: int
) -> Callable[..., State]:
    """``step(state, *inputs)`` as ``zoned(state, t, *inputs)``, after which units keep some of their old state.

    Krueger et al. 2017: all of it with the given probabilities (of h, of c), as drawn from ``seeds`` [B]; without
    seeds as much of it as they do on average. ``initial`` tells the sizes of the states, [B, ..].
    """
    drawn = None
    if seeds is not None and any(chances):
        drawn = [
            happens(seeds, steps, s.shape[-1], Draw.ZONEOUT, chances)[which].unbind() for which, s in enumerate(initial)
        ]

    def kept(which: int, t: int, old: Tensor, new: Tensor) -> Tensor:
        p = chances[which]
        if not p:
            return new
        if drawn is None:
            return p * old + (1 - p) * new
        return torch.where(drawn[which][t][: old.shape[0]], old, new)

    def zoned(state: State, t: int, *inputs: Tensor | None) -> State:
        new = step(state, *inputs)
        return tuple(kept(which, t, *values) for which, values in enumerate(zip(state, new, strict=True)))

    return zoned
