"""Arguments of a call under ``torch.autocast``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.amp import is_autocast_available

from .reference import Cell

__all__ = ["as_they_are", "autocast"]

Maybe = Tensor | None

_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})  # autocast leaves f64 alone
_autocasts = torch._C._is_any_autocast_enabled


def as_they_are(tensor: Tensor) -> AbstractContextManager:
    """For products of tensors that autocast has had its say on: a derivative may be made in a region that the forward
    was not in, or past the end of it."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if _autocasts() and is_autocast_available(device) else nullcontext()


def autocast(
    cell: int, device: str, input: Tensor, h0: Maybe, c0: Maybe, weights: Sequence[Tensor]
) -> tuple[Tensor, Maybe, Maybe, list[Tensor]]:
    """What autocast turns the arguments into. On the CPU a GRU's state, of the input's type if none is given, keeps
    its type in torch and widens all; cuDNN casts everything."""
    dtype = torch.get_autocast_dtype(device)
    if cell == Cell.GRU and device == "cpu":
        dtype = torch.promote_types(dtype, (input if h0 is None else h0).dtype)

    def cast(tensor: Any) -> Any:
        return tensor.to(dtype) if tensor is not None and tensor.dtype in _DTYPES else tensor

    return cast(input), cast(h0), cast(c0), [cast(weight) for weight in weights]
