"""Arguments of a call under ``torch.autocast``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .reference import Cell

__all__ = ["autocast"]

Maybe = Tensor | None

_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})  # autocast leaves f64 alone


def autocast(
    cell: int, device: str, input: Tensor, h0: Maybe, c0: Maybe, weights: Sequence[Tensor]
) -> tuple[Tensor, Maybe, Maybe, list[Tensor]]:
    """What autocast turns the arguments into. On the CPU a GRU's state keeps its type in torch, and wider states widen
    all; cuDNN casts everything."""
    dtype = torch.get_autocast_dtype(device)
    if cell == Cell.GRU and device == "cpu":
        for tensor in (input, h0):
            dtype = dtype if tensor is None else torch.promote_types(dtype, tensor.dtype)

    def cast(tensor: Any) -> Any:
        return tensor.to(dtype) if tensor is not None and tensor.dtype in _DTYPES else tensor

    return cast(input), cast(h0), cast(c0), [cast(weight) for weight in weights]
