"""In which precision f32 products are computed on CUDA: the same for a case's providers, and said for every row.

torch has two switches. ``torch.backends.cudnn.rnn.fp32_precision`` is what ``nn.*`` follows and is TF32 unless somebody
changes it; the one for matrix products is full f32. A case in ``f32`` runs with both at 'ieee', one in ``tf32`` with
both at 'tf32', so that neither side gets away with fewer bits than the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

cudnn: Any = torch.backends.cudnn  # its switches are made at run time
cuda: Any = torch.backends.cuda
MODES = {"f32": "ieee", "tf32": "tf32"}


@dataclasses.dataclass(frozen=True)
class Switches:
    """The older ones (`allow_tf32`, `float32_matmul_precision`) along with the newer, and convolutions too: torch
    raises at whoever reads an older one that does not agree with all the newer."""

    recurrent: str
    convolution: str
    allow: bool
    products: str
    older_products: str

    @classmethod
    def now(cls) -> Switches:
        recurrent, convolution = cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision
        older = torch.get_float32_matmul_precision()
        return cls(recurrent, convolution, cudnn.allow_tf32, cuda.matmul.fp32_precision, older)

    @classmethod
    def of(cls, mode: str) -> Switches:
        return cls(mode, mode, mode == "tf32", mode, "high" if mode == "tf32" else "highest")

    def set(self) -> None:
        cudnn.allow_tf32 = self.allow
        cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision = self.recurrent, self.convolution
        torch.set_float32_matmul_precision(self.older_products)
        cuda.matmul.fp32_precision = self.products


@contextlib.contextmanager
def in_force(dtype: str, device: str) -> Iterator[None]:
    """For f32 and tf32 on CUDA; everything is as it was afterwards."""
    mode = MODES.get(dtype)
    if device != "cuda" or mode is None:
        yield
        return
    before = Switches.now()
    try:
        Switches.of(mode).set()
        yield
    finally:
        before.set()


def stated(dtype: str, device: str) -> str:
    """For a row: read from the switches while they are in force, not taken from the case's name."""
    if device != "cuda" or dtype not in MODES:
        return dtype
    recurrent, products = cudnn.rnn.fp32_precision, cuda.matmul.fp32_precision
    return recurrent if recurrent == products else f"rnn {recurrent}, matmul {products}"


def told(device: str) -> str:
    """For the header."""
    matmul = torch.get_float32_matmul_precision()
    if device != "cuda":
        return f"f32 products in full f32 (float32_matmul_precision {matmul!r})"
    default = cudnn.rnn.fp32_precision
    return (
        "rows in f32: products in full f32 ('ieee'); rows in tf32: in TF32; "
        f"torch's own setting here: nn.* in {'TF32' if default == 'tf32' else 'full f32'} "
        f"(cudnn.rnn.fp32_precision {default!r}, float32_matmul_precision {matmul!r})"
    )
