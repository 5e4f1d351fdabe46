"""What autocast turns the arguments of a network into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .reference import Cell

__all__ = ["cast"]

Maybe = Tensor | None
_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})  # autocast leaves f64 alone


def cast(
    cell: int, device: str, input: Tensor, h0: Maybe, c0: Maybe, weights: Sequence[Tensor]
) -> tuple[Tensor, Maybe, Maybe, list[Tensor]]:
    """The same in the dtype of this device. On the CPU a GRU's state keeps its type in torch, and wider states widen
    all; cuDNN casts everything."""
    dtype = torch.get_autocast_dtype(device)
    if cell == Cell.GRU and device == "cpu":
        for tensor in (input, h0):
            dtype = dtype if tensor is None else torch.promote_types(dtype, tensor.dtype)

    def of(tensor: Any) -> Any:
        return tensor.to(dtype) if tensor is not None and tensor.dtype in _DTYPES else tensor

    return of(input), of(h0), of(c0), [of(weight) for weight in weights]
