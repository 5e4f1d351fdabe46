"""What is measured on a CUDA device, and on whose ground each case stands.

cuDNN has several algorithms, and ``nn.*`` chooses by these conditions (PyTorch's ``RNN.cpp``; compute capability 8 and
newer with at least 98 multiprocessors, not 8.6): kernels that keep everything on chip for small H; persistent kernels
for f16, one layer, one direction; its standard kernels for everything else. ``ground`` says which:

| ground | who is strong there |
|---|---|
| ``packed`` | variable lengths: cuDNN's standard kernels |
| ``window`` | cuDNN's persistent kernels, its best |
| ``gemm`` | B*H above 32,768: matrix products rule, whoever calls them |
| ``small`` | cuDNN's kernels for small H (H up to 192, the backward up to 128; plain RNNs twice that) |
| ``open`` | the rest: cuDNN's standard kernels |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .cases import MODES, Case, Shape, shapes

GROUNDS = {
    "open": "open ground",
    "gemm": "B*H above 32,768",
    "window": "cuDNN's f16 window",
    "small": "cuDNN's small H",
    "packed": "packed",
}


def ground(case: Case) -> str:
    shape, plain = case.shape, case.cell.startswith("RNN")
    if shape.packed:
        return "packed"
    if in_window(case):
        return "window"
    if shape.B * shape.H > 32_768:
        return "gemm"
    small = (128 if case.training else 192) * (2 if plain else 1)
    return "small" if case.dtype != "f64" and small >= shape.H else "open"


def in_window(case: Case) -> bool:
    """cuDNN's persistent kernels (``CUDNN_RNN_ALGO_PERSIST_STATIC``)."""
    shape = case.shape
    if case.dtype != "f16" or shape.packed or shape.layers > 1 or shape.bidirectional:
        return False
    if shape.H > 1024 or shape.H % 128 or shape.I % 128 or shape.B % 8 or shape.B > 128:
        return False
    return case.cell == "LSTM" or (case.cell.startswith("RNN") and (shape.B < 96 or shape.H < 896))


# One of each kind: a row alone and a small batch over a long sequence, cuDNN's best in f16, large products, variable
# lengths, two layers in two directions, small H.
QUICK = shapes(
    "1000,1,256,256",
    "1000,16,512,512",
    "1000,16,768,768",
    "100,128,1024,1024",
    "500,32,512,512,packed",
    "200,32,512,512,2l,bi",
    "1000,16,128,128",
)
BF16 = shapes(
    *("1000,1,64,64", "1000,1,512,512", "2000,1,512,512", "1000,16,256,256"),
    *("500,8,384,384", "200,64,512,512", "500,64,256,256", "300,10,300,300", "200,1,1024,1024"),
    *("200,32,1024,1024", "100,1,2048,2048", "100,16,2048,2048"),
    *("1000,16,256,256,packed", "200,128,256,256,packed", "1000,32,128,128,packed"),
    *("200,32,512,512,2l", "500,16,256,256,2l,bi", "200,32,384,384,bi"),
    *("100,256,512,512", "100,64,2048,2048", "200,64,1024,1024"),
    *("1000,32,64,64", "500,128,64,64"),
)
F16 = shapes(
    *("500,8,256,256", "500,64,512,512", "200,32,1024,1024", "500,128,256,256"),  # cuDNN's window, for an LSTM
    *("1000,1,512,512", "500,8,384,384", "200,128,256,256,packed", "500,16,256,256,2l,bi", "100,256,512,512"),
)
TF32 = shapes(
    *("1000,1,512,512", "200,64,512,512", "500,64,256,256", "200,32,1024,1024", "100,16,2048,2048"),
    *("1000,16,256,256,packed", "200,32,512,512,2l", "100,256,512,512"),
)
F32 = shapes("1000,1,256,256", "200,64,512,512", "500,32,512,512,packed", "200,32,512,512,2l,bi")
RNN = shapes("100,128,1024,1024", "500,32,512,512,packed", "200,64,512,512", "1000,32,64,64")
NATIVE_STEPS = 500  # longer, and nn.* without cuDNN would take most of the time there is


def cross(dtypes: Iterable[str], cells: Iterable[str], some: Iterable[Shape]) -> Iterator[Case]:
    for shape in some:
        for cell in cells:
            for dtype in dtypes:
                for mode in MODES:
                    yield Case(cell, mode, dtype, shape, "cuda")


def quick() -> Iterator[Case]:
    """About a hundred cases."""
    yield from cross(("bf16", "f16", "tf32"), ("LSTM", "GRU"), QUICK)
    yield from cross(("f32",), ("LSTM", "GRU"), QUICK[1:2])
    yield from cross(("bf16",), ("RNN",), QUICK[1:3])


def standard() -> Iterator[Case]:
    """The quick set and bf16 at every shape."""
    yield from quick()
    yield from cross(("bf16",), ("LSTM", "GRU"), BF16)


def grid() -> Iterator[Case]:
    """And the other dtypes and cells, what says most first: time may run out."""
    yield from standard()
    yield from cross(("f16",), ("LSTM", "GRU"), F16)
    yield from cross(("tf32",), ("LSTM", "GRU"), TF32)
    yield from cross(("f32",), ("LSTM", "GRU"), F32)
    yield from cross(("bf16",), ("RNN",), RNN)
    yield from cross(("f16",), ("RNN", "RNN_RELU"), shapes("1000,16,768,768"))
    yield from cross(("f64",), ("LSTM", "GRU"), shapes("100,32,256,256"))


def native_pays(case: Case) -> bool:
    """Where ``nn.*`` without cuDNN is measured unasked: it is the way out for double backward, and slow."""
    return case.shape.T <= NATIVE_STEPS and (case.dtype == "f32" or case.shape.packed)
