"""The op libraries: loads them; the only user of ``torch.ops.fused_rnn``. (``fakes.py`` tells torch shapes of results.)

The contract of the ops (shapes, layouts, meaning of every argument) is in docs/design.md. They carry no autograd
formula and must see only tensors of which nothing is differentiated or mapped: that is what ``autograd.py`` is for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import onnx_nodes
from .reference import Cell

__all__ = [
    "ONNX_DECOMPOSITIONS",
    "WITHOUT_CUDA",
    "Cell",
    "Save",
    "Square",
    "exported_layer",
    "layer_backward",
    "layer_backward_gates",
    "layer_forward",
    "own_copies",
    "packed_rows",
    "packet",
    "stack_forward",
]

_LIBRARY = Path(__file__).with_name("libfused_rnn.so")
_CUDA_LIBRARY = Path(__file__).with_name("_C_cuda.so")  # kernels for the same ops


class Save(IntEnum):
    """What a forward keeps for the backward; the numbers are those of the op's ``save`` argument."""

    NOTHING = 0
    ALL = 1
    STATES = 2  # beside y, of which the backward rebuilds the gates: an LSTM's c


class Square(IntEnum):
    """Whose sums of squares a backward tells, of every row of every step (dL/dh_t and so on); an op's contract."""

    H = 0  # of h, the whole
    C = 1  # of c, the whole; LSTM, else 0, as of whatever is of c
    LATER_H = 2  # what came to h from the step after it (in walking order)
    LATER_C = 3  # and to c
    SENT_H = 4  # the same as that step sent it, before it was clipped; this and what follows is 0 without such a step
    SENT_C = 5
    KEPT = 6  # of SENT_H what went past W_hh: by a GRU's z, by zoneout
    RECURRENT = 7  # and what went through it


def _load() -> None:
    if hasattr(torch.ops.fused_rnn, "layer_forward"):
        return  # the program has loaded the library by itself, as one compiled by AOTInductor does
    if not _LIBRARY.exists():
        raise ImportError(
            f"fused_rnn: its op library {_LIBRARY.name} is missing from {_LIBRARY.parent}. In a source checkout build "
            f"it with `python setup.py build_ext --inplace`, or install with `pip install --no-build-isolation .`"
        )
    try:
        torch.ops.load_library(_LIBRARY)
    except OSError as error:
        raise ImportError(
            f"fused_rnn: {_LIBRARY} does not load under torch {torch.__version__} (2.10 or later is needed): {error}"
        ) from error


def _load_cuda() -> str:
    """Why there are no CUDA kernels; empty if there are. Loading them asks for no GPU."""
    if torch._C._dispatch_has_kernel_for_dispatch_key("fused_rnn::layer_forward", "CUDA"):
        return ""
    if not torch.version.cuda:
        return f"torch {torch.__version__} is a build without CUDA"
    if not _CUDA_LIBRARY.exists():
        return (
            f"its CUDA kernels ({_CUDA_LIBRARY.name}) were not built: with nvcc in PATH, or CUDA_HOME set, run "
            f"`FUSED_RNN_CUDA=1 pip install --no-build-isolation .` (in a source checkout "
            f"`FUSED_RNN_CUDA=1 python setup.py build_ext --inplace`)"
        )
    try:
        torch.ops.load_library(_CUDA_LIBRARY)
    except OSError as error:
        return f"{_CUDA_LIBRARY.name} does not load under torch {torch.__version__}: {error}"
    return ""


_load()
WITHOUT_CUDA = _load_cuda()


def packet(name: str) -> Any:
    """All overloads of an op, as torch's registries want them."""
    return getattr(torch.ops.fused_rnn, name)


_layer_forward = torch.ops.fused_rnn.layer_forward.default
exported_layer = torch.ops.fused_rnn.exported_layer.default
_layer_backward = torch.ops.fused_rnn.layer_backward.default
_layer_backward_gates = torch.ops.fused_rnn.layer_backward_gates.default
_stack_forward = torch.ops.fused_rnn.stack_forward.default
own_copies = torch.ops.fused_rnn.own_copies.default

_is_compiling = torch.compiler.is_compiling
_is_exporting = torch.compiler.is_exporting
_is_tracing = torch._C._is_tracing  # past the Python part, as what follows
_precision = torch._C._get_fp32_precision_getter


def splits_f32(x: Tensor) -> bool:
    """Whether products of f32 may take less of each factor, by the switch that torch's own go by there: on the CPU two
    bf16, on CUDA, in the time loop, TF32.

    For the CPU ``torch.set_float32_matmul_precision`` sets it, or ``torch.backends.mkldnn.matmul.fp32_precision`` by
    itself; for CUDA ``torch.backends.cudnn.rnn.fp32_precision`` (or ``torch.backends.cudnn.allow_tf32``), on at first.
    """
    if _is_compiling():
        return _splits_f32_in_graph(x.is_cuda)
    if x.is_cuda:
        return _takes_tf32()
    return _precision("mkldnn", "matmul") in ("tf32", "bf16")


def _takes_tf32() -> bool:
    """Whether recurrent layers may multiply f32 as TF32 on CUDA, by torch's switch for its own."""
    return _precision("cuda", "rnn") == "tf32"


@torch.compiler.assume_constant_result
def _splits_f32_in_graph(cuda: bool) -> bool:
    """The same for a graph, which keeps it: for the CPU by the switch that Dynamo guards, and compiles anew for."""
    if cuda:
        return _takes_tf32()
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # this switch and newer ones contradict each other
        return False


def _of_the_call(weights: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """For a trace a list that depends on x, so that no optimiser makes a constant of it: torch's boxed call of our ops
    moves the tensors out of a list, for good out of such a one."""
    return [weights[0].reshape(-1, x.shape[-1]), *weights[1:]]


def layer_forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    cell: int,
    save: int,
    reset: Tensor | None = None,
    reset_initial: bool = False,
    variant: Sequence[float] | None = None,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y [T, B, D*R] or [N, D*R], hn [D, B, R], cn [D, B, H] (LSTM) or [0], saved [D, N, S*H] or [0]."""
    op: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = _layer_forward
    if _is_compiling():
        if onnx_nodes.exporting():
            op = onnx_nodes.op
        elif _is_exporting():  # a program has no Functions; what is to be differentiated there has its own derivative
            op = exported_layer
    elif _is_tracing():
        weights = _of_the_call(weights, x)
    inputs = (x, h0, c0, weights, batch_sizes, cell, save)
    return op(*inputs, splits_f32(x), reset, reset_initial, variant, seed)


ONNX_DECOMPOSITIONS: dict[torch._ops.OpOverload, Callable[..., Any]] = dict.fromkeys(
    (_layer_forward, exported_layer), onnx_nodes.op
)


def layer_backward(
    dy: Tensor | None,
    dhn: Tensor | None,
    dcn: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    y: Tensor,
    saved: Tensor,
    batch_sizes: Tensor | None,
    cell: int,
    needs: int,
    reset: Tensor | None = None,
    reset_initial: bool = False,
    variant: Sequence[float] | None = None,
    seed: Tensor | None = None,
    dcells: Tensor | None = None,
    tell: bool = False,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """dx, dh0, dc0, dweights; what no bit of ``needs`` asks for has shape [0].

    With ``tell`` one more stands behind dweights: squares, f64 [8, D, N], in the order of :class:`Square`.
    """
    inputs = (dy, dhn, dcn, x, h0, c0, weights, y, saved, batch_sizes, cell)
    return _layer_backward(*inputs, needs, splits_f32(x), reset, reset_initial, variant, seed, dcells, tell)


def layer_backward_gates(
    dy: Tensor | None,
    dhn: Tensor | None,
    dcn: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    y: Tensor,
    saved: Tensor,
    batch_sizes: Tensor | None,
    cell: int,
    reset: Tensor | None = None,
    reset_initial: bool = False,
    variant: Sequence[float] | None = None,
    seed: Tensor | None = None,
    dcells: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dh0, dc0, dgx [N, D*G*H], dgh [N, D*H] (GRU, r after the product) or [0], dr [N, D*P] (projection) or [0]."""
    inputs = (dy, dhn, dcn, x, h0, c0, weights, y, saved, batch_sizes, cell)
    return _layer_backward_gates(*inputs, splits_f32(x), reset, reset_initial, variant, seed, dcells)


def stack_forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    cell: int,
    layers: int,
    reset: Tensor | None = None,
    reset_initial: bool = False,
    variant: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Several layers of one direction, on the CPU: y of the last [T, B, R] or [N, R], hn [layers, B, R], cn (LSTM)
    [layers, B, H] or [0]. h0 and c0 are [layers, B, ..], or [1, B, ..] for all of them."""
    if _is_tracing():
        weights = _of_the_call(weights, x)
    inputs = (x, h0, c0, weights, batch_sizes, cell, layers)
    return _stack_forward(*inputs, splits_f32(x), reset, reset_initial, variant)


def packed_rows(batch_sizes: Tensor) -> int:
    """B of a packed sequence: the rows of its first step, which no shape tells when nothing was sorted.

    Dynamo breaks the graph at a number read out of a tensor unless told to carry it as a symbol; B of a packed
    sequence is the one such number this package needs, so it is told so here and for no one else.
    """
    if torch.compiler.is_compiling():
        with torch._dynamo.patch_dynamo_config(capture_scalar_outputs=True):
            rows: int = batch_sizes[0].item()  # type: ignore[assignment]
            torch._check(rows >= 1)
            return rows
    return int(batch_sizes[0])
