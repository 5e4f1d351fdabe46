"""In which precision f32 products are computed on CUDA: the same for a case's providers, and said for every row.

torch has two switches. ``torch.backends.cudnn.rnn.fp32_precision`` is what ``nn.*`` follows and is TF32 unless somebody
changes it; the one for matrix products is full f32. A case in ``f32`` runs with both at 'ieee', one in ``tf32`` with
both at 'tf32', so that neither side gets away with fewer bits than the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

cudnn: Any = torch.backends.cudnn  # its switches are made at run time
cuda: Any = torch.backends.cuda
MODES = {"f32": "ieee", "tf32": "tf32"}


def now() -> tuple[str, str, bool, str]:
    return cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision, cudnn.allow_tf32, torch.get_float32_matmul_precision()


def switch(recurrent: str, convolution: str, allow: bool, products: str) -> None:
    """The older switches (`allow_tf32` and `float32_matmul_precision`) along with the newer, and for convolutions too:
    torch raises at whoever reads an older one that does not agree with all the newer."""
    cudnn.allow_tf32 = allow
    cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision = recurrent, convolution
    torch.set_float32_matmul_precision(products)


@contextlib.contextmanager
def in_force(dtype: str, device: str) -> Iterator[None]:
    """For f32 and tf32 on CUDA; everything is as it was afterwards."""
    mode = MODES.get(dtype)
    if device != "cuda" or mode is None:
        yield
        return
    before = now()
    try:
        switch(mode, mode, mode == "tf32", "high" if mode == "tf32" else "highest")
        yield
    finally:
        switch(*before)


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
