"""How the time loops of a module would be launched on a GPU. Nothing runs, and the GPU need not be there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from . import _C
from .reference import Cell, Variant

__all__ = ["DEVICES", "plans"]

# What a plan depends on, of GPUs by name (NVIDIA's tuning guides for compute capability 8.0 and 9.0). How many clusters
# of 1, 2, 4, 8, 16 blocks there is room for at once is a guess where they are large: they lie within groups of
# multiprocessors that differ from chip to chip, and a call asks the device.
_HOPPER = {"shared_per_block": 227 << 10, "shared_per_sm": 228 << 10}
_AMPERE = {"shared_per_block": 163 << 10, "shared_per_sm": 164 << 10}
_COMMON = {"threads_per_sm": 2048, "registers_per_sm": 1 << 16, "cooperative": True}
DEVICES: dict[str, dict[str, Any]] = {
    "h200": {"sms": 132, "clusters": (132, 66, 33, 16, 8), **_HOPPER, **_COMMON},
    "h100": {"sms": 132, "clusters": (132, 66, 33, 16, 8), **_HOPPER, **_COMMON},
    "a100": {"sms": 108, **_AMPERE, **_COMMON},
}


def _limits(device: str) -> dict[str, Any]:
    if device in DEVICES:
        return DEVICES[device]
    try:
        found: Any = torch.cuda.get_device_properties(device)
    except (AssertionError, RuntimeError, ValueError) as error:  # the first is that of a torch without CUDA
        raise ValueError(f"no GPU {device!r} here; known without one: {', '.join(DEVICES)}") from error
    sms = found.multi_processor_count
    return {
        "sms": sms,
        "clusters": tuple(sms >> i for i in range(5)) if found.major >= 9 else (0,) * 5,
        "shared_per_block": found.shared_memory_per_block_optin,
        "shared_per_sm": found.shared_memory_per_multiprocessor,
        "threads_per_sm": found.max_threads_per_multi_processor,
        "registers_per_sm": found.regs_per_multiprocessor,
        "cooperative": True,
    }


def plans(module: Any, batch: int, steps: int, device: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(pass, plan) of the time loops of ``module`` (an LSTM, GRU or RNN), forward and backward; its layers are alike.

    ``device``: a name of :data:`DEVICES`, which need not be there, or "cuda", "cuda:1", ... for one that is.

    Raises ValueError for any other.
    """
    weight = module.weight_hh_l0
    size = {
        "cell": int(Cell[module.mode]),
        "T": steps,
        "B": batch,
        "D": 2 if module.bidirectional else 1,
        "H": module.hidden_size,
        "P": module.proj_size,
        "element_size": weight.element_size(),
    }
    variant = module.variant or Variant()
    tf32 = torch.backends.cudnn.rnn.fp32_precision == "tf32"  # type: ignore[attr-defined]  # of torch 2.9
    tensor = weight.element_size() == 2 or (weight.element_size() == 4 and tf32)
    for backward in (False, True):
        rowwise = variant.layer_norm or (backward and variant.clips)
        options = {"tensor": tensor, "rowwise": rowwise, "clustered": variant == Variant()}
        plan = _C.cuda_plan(backward=backward, **options, **size, **_limits(device))
        yield "backward" if backward else "forward", plan
