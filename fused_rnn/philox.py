"""Random numbers that are a function of where they are needed: Philox 4x32 of ten rounds (Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3"), in tensors; the kernels have the same (csrc/core/philox.h).

A number belongs to a seed, a step and a unit, so masks can be computed again in a backward pass, and none is kept.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

__all__ = ["Draw", "happens", "philox"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_CHANCE_BITS = 30  # of a word that are compared with a probability


class Draw(IntEnum):
    """What numbers are drawn for: the third word of the counter."""

    ZONEOUT = 0  # the first word of the result decides on h, the second on c
    RECURRENT_DROPOUT = 1  # the first word, at step 0


def _multiply_wide(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The upper and the lower half of a product of 32-bit numbers, in int64 that never overflow."""
    low, middle = a * (m & 0xFFFF), a * (m >> 16)
    middle = middle + (low >> 16)
    return middle >> 16, (middle & 0xFFFF) << 16 | low & 0xFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words for a counter of four, numbers below 2^32 in int64 tensors that broadcast; ``key``: of 64 bits."""
    k0, k1 = key & _LOW, key >> 32 & _LOW
    a, b, c, d = counter
    for _ in range(10):
        high0, low0 = _multiply_wide(a, _MULTIPLIERS[0])
        high1, low1 = _multiply_wide(c, _MULTIPLIERS[1])
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
        k0, k1 = k0 + _WEYL[0] & _LOW, k1 + _WEYL[1] & _LOW
    return a, b, c, d


def happens(seeds: Tensor, steps: int, units: int, draw: Draw, chances: tuple[float, ...]) -> list[Tensor]:
    """For each of up to four ``chances`` whether an event of this probability happens, bool [steps, B, units].

    seeds: int64 [B].
    """
    unit = torch.arange(units, device=seeds.device)
    step = torch.arange(steps, device=seeds.device).view(-1, 1, 1)
    counter = (unit, step, torch.full_like(unit, int(draw)), torch.zeros_like(unit))
    words = philox(counter, seeds.unsqueeze(-1))
    return [word >> 32 - _CHANCE_BITS < int(p * (1 << _CHANCE_BITS)) for word, p in zip(words, chances, strict=False)]
