"""The device the suite runs on (``pytest --device=cuda``), and what the tests must know of it.

It is torch's default device, so what a test makes lands there by itself. Two things stay on the CPU: the lengths of
packed sequences, as torch wants them there, and random generators, so that every device gets the same numbers.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn.utils import rnn

from fused_rnn import _C, ops


def use(name: str) -> None:
    """Before any test is imported; raises RuntimeError where there is no such device."""
    if torch.cuda.is_available():
        # Products of f32 in f32, ours and cuDNN's. By the older switches, which set the newer ones too: the other way
        # round torch refuses to tell the older ones, and `cudnn.flags` asks for them.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    if name != "cpu":
        torch.empty(0, device=name)
        torch.set_default_device(name)


def device() -> torch.device:
    return torch.get_default_device()


def on_cpu() -> bool:
    return device().type == "cpu"


def cuda_kernels() -> bool:
    """Whether the ops run those: on a GPU, or on the host (host_kernels.py)."""
    return not on_cpu() or ops._layer_forward is not torch.ops.fused_rnn.layer_forward.default


def rounds_operands(dtype: torch.dtype) -> bool:
    """Whether products of a narrow type take their operands in it: CUDA's kernels and the CPU's matrix tiles do, its
    other kernels widen them."""
    return cuda_kernels() or (dtype == torch.bfloat16 and _C.cpu_isa() == "amx")


def flushes() -> bool:
    """Whether loops make zeros of subnormal numbers."""
    return not cuda_kernels() and platform.machine() in ("x86_64", "AMD64")


def allow_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's kernels may multiply f32 so: on a GPU by torch's switch, on the host, which has another one, by ours."""
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")
    if on_cpu():
        monkeypatch.setattr(ops, "splits_f32", lambda x: True)


def isas() -> list[str]:
    """For ``_C.force_isa``, whatever a test is to run on: the CPU's instruction sets; elsewhere "" (none forced)."""
    return _C.cpu_isas() if on_cpu() else [""]


def native_loops() -> AbstractContextManager:
    """On a GPU torch's own loops in place of cuDNN's, for what only these can do: a backward in eval mode, a second
    derivative, dropout from the generator that everything else draws from."""
    return nullcontext() if on_cpu() else torch.backends.cudnn.flags(enabled=False, allow_tf32=False)


def pack_sequence(sequences: Sequence[Tensor], enforce_sorted: bool = True) -> rnn.PackedSequence:
    """torch's, which makes the lengths on the default device and then wants them on the CPU."""
    with torch.device("cpu"):
        return rnn.pack_sequence(sequences, enforce_sorted=enforce_sorted)


def rng_state() -> Tensor:
    return torch.get_rng_state() if on_cpu() else torch.get_device_module(device()).get_rng_state()


def synchronize() -> None:
    if not on_cpu():
        torch.get_device_module(device()).synchronize()
