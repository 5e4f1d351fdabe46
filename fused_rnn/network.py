"""A whole network over a whole sequence: layers, dropout between them, packed sequences, autocast.

One layer is one call of ``autograd.layer``, whatever its length and directions, a packed sequence too. What has no
kernels goes to torch's own functions (``fallback.py``), or with an option that these do not know (a reset, a variant of
the cell, lengths, cell states) to the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import checks, fallback, onnx_nodes
from .autocast import autocast
from .autograd import layer
from .dropout import Drops, Rows
from .lengths import Packing, Padding, readable
from .ops import WITHOUT_CUDA, packed_rows
from .reference import Cell, Variant
from .stack import Net, OneLayer, by_reference, stack

__all__ = [
    "GRU",
    "LSTM",
    "RNN_RELU",
    "RNN_TANH",
    "check_lengths_type",
    "check_packed_reset",
    "check_reset",
    "has_kernels",
    "sequence",
]

Maybe = Tensor | None
Standing = Callable[[OneLayer, bool], OneLayer]  # what stands for each layer; whether there are kernels

# Plain ints and bound functions: every look-up saved is 50 ns of each call.
LSTM, GRU, RNN_TANH, RNN_RELU = int(Cell.LSTM), int(Cell.GRU), int(Cell.RNN_TANH), int(Cell.RNN_RELU)
_KERNEL_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
_autocasts = torch._C._is_any_autocast_enabled
_is_compiling = torch.compiler.is_compiling
_is_tracing = torch.jit.is_tracing
_INTEGERS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})
_RESET_STATES = {"zero": False, "initial": True}


def has_kernels(input: Tensor, h0: Maybe, c0: Maybe, weights: Sequence[Tensor]) -> bool:
    """Whether these tensors may go to our ops."""
    if input.is_cpu:
        here = weights[0].is_cpu and (h0 is None or h0.is_cpu) and (c0 is None or c0.is_cpu)
    else:
        here = input.is_cuda and not WITHOUT_CUDA and _all_on(input.device, h0, c0, weights)
    return here and input.dtype in _KERNEL_DTYPES and not (_is_tracing() and _untraceable((input, h0, c0, *weights)))


def _all_on(device: torch.device, h0: Maybe, c0: Maybe, weights: Sequence[Tensor]) -> bool:
    return all(tensor is None or tensor.device == device for tensor in (h0, c0, *weights))


def _untraceable(tensors: Sequence[Maybe]) -> bool:
    """Whether ``torch.jit.trace`` should record torch's function: a trace of ours has no gradient, and an ONNX exporter
    knows no op of ours. The grad mode says nothing, as a trace made under ``no_grad`` may be trained."""
    return torch.onnx.is_in_onnx_export() or any(tensor is not None and tensor.requires_grad for tensor in tensors)


def sequence(
    cell: int,
    input: Any,
    hx: Any,
    weights: Sequence[Tensor],
    features: int,
    hidden: int,
    projection: int,
    layers: int,
    directions: int,
    batch_first: bool,
    dropout: float,
    training: bool,
    recompute: bool,
    reset: Any = None,
    reset_to: str = "zero",
    variant: Variant | None = None,
    lengths: Any = None,
    cells: bool = False,
    connection: str | None = None,
    drops: Drops | None = None,
    recorder: Standing | None = None,
) -> tuple[Any, Any]:
    """Checks the arguments as ``torch.nn`` does and runs the network; what modules and functions have in common.

    ``features`` is I, ``hidden`` H, ``projection`` P or 0; ``reset`` in the layout of ``input``, without features;
    ``lengths`` [B], without B where the input is unbatched; ``recorder``: of a module whose gradients are looked at.
    """
    if cells and cell != LSTM:
        raise checks.lstm_only("cells")
    if reset_to not in _RESET_STATES:
        raise checks.reset_state(reset_to)
    reset_initial = _RESET_STATES[reset_to]
    if not training:
        variant, drops = None if variant is None else variant.without("recurrent_dropout"), None
    if type(input) is not Tensor and isinstance(input, PackedSequence):
        if lengths is not None:
            raise checks.lengths_of_packed()
        options = (layers, directions, dropout, training, recompute, reset_initial, variant, connection, drops)
        inputs = (cell, input, hx, reset, cells, weights, features, hidden, projection)
        return _packed(*inputs, *options, recorder=recorder)
    rank = input.dim()
    if rank != 3 and rank != 2:
        raise checks.input_rank(cell, rank)
    if reset is not None:
        check_reset(reset, input, input.shape[:-1])
    if lengths is not None:
        _check_lengths(lengths, () if rank == 2 else (input.shape[0 if batch_first else 1],))
    if rank == 2:
        input, batch_first = input.unsqueeze(1), False
        reset = None if reset is None else reset.unsqueeze(1)
        lengths = None if lengths is None else lengths.unsqueeze(0)
    if hx is None:
        h0 = c0 = None
    elif cell != LSTM:
        h0, c0 = hx, None
        if h0.dim() != rank:
            raise checks.state_rank(rank == 3, (h0,))
        if rank == 2:
            h0 = h0.unsqueeze(1)
    else:
        h0, c0 = hx[0], hx[1]
        if h0.dim() != rank or c0.dim() != rank:
            raise checks.state_rank(rank == 3, (h0, c0))
        if rank == 2:
            h0, c0 = h0.unsqueeze(1), c0.unsqueeze(1)

    shape = input.shape
    _check_input(input.dtype, shape[2], weights, features)
    batch, steps = (shape[0], shape[1]) if batch_first else (shape[1], shape[0])
    if h0 is not None:
        _check_states(h0, c0, layers * directions, batch, projection or hidden, hidden)
        if c0 is not None and len(hx) != 2:
            raise checks.state_count()
    if not steps:
        raise checks.no_steps()

    sizes = (batch, hidden, projection, layers, directions)
    net = (cell, *sizes, dropout, training, recompute, reset_initial, variant, connection, drops)
    outputs = _run(net, input, h0, c0, weights, None, reset, lengths, batch_first, cells, recorder)
    if rank == 2:
        outputs = tuple(None if output is None else output.squeeze(1) for output in outputs)
    y, hn, cn, c = outputs
    return y if c is None else (y, c), hn if cn is None else (hn, cn)


def _packed(
    cell: int,
    input: PackedSequence,
    hx: Any,
    reset: PackedSequence | None,
    cells: bool,
    weights: Sequence[Tensor],
    features: int,
    hidden: int,
    projection: int,
    layers: int,
    directions: int,
    dropout: float,
    training: bool,
    recompute: bool,
    reset_initial: bool,
    variant: Variant | None,
    connection: str | None,
    drops: Drops | None,
    recorder: Standing | None,
) -> tuple[Any, Any]:
    """:func:`sequence` for a PackedSequence; states come and go in the caller's order of rows."""
    data, batch_sizes, sorted_indices, unsorted_indices = input
    if data.dim() != 2:
        raise checks.packed_rank(data.dim())
    _check_input(data.dtype, data.shape[1], weights, features)
    if reset is not None:
        check_packed_reset(reset, input)
    h0 = c0 = None
    if hx is not None:
        h0, c0 = _two_states(hx) if cell == LSTM else (hx, None)
    batch = _packed_batch(batch_sizes, sorted_indices, h0)
    if h0 is not None:
        _check_states(h0, c0, layers * directions, batch, projection or hidden, hidden)
        h0, c0 = _permuted(h0, sorted_indices), _permuted(c0, sorted_indices)

    sizes = (batch, hidden, projection, layers, directions)
    net = (cell, *sizes, dropout, training, recompute, reset_initial, variant, connection, drops)
    marks = None if reset is None else reset.data
    others = (batch_sizes, marks, None, False, cells, recorder, sorted_indices)
    data, hn, cn, c = _run(net, data, h0, c0, weights, *others)
    hn, cn = _permuted(hn, unsorted_indices), _permuted(cn, unsorted_indices)
    y = PackedSequence(data, *input[1:])
    return y if c is None else (y, PackedSequence(c, *input[1:])), hn if cn is None else (hn, cn)


def _two_states(hx: Any) -> Any:
    """An LSTM's, beside a PackedSequence: no rank has been asked for, which would have missed one that is not there."""
    if len(hx) != 2:
        raise checks.state_count()
    for i, state in enumerate(hx):
        if state is None:
            raise checks.state_missing(i)
    return hx[0], hx[1]


def _packed_batch(batch_sizes: Tensor, sorted_indices: Maybe, h0: Maybe) -> int:
    """B, off a shape where one tells: while compiling nothing can be compared with a number out of a tensor, and what
    is then wrong with a state is left to the op to find."""
    if sorted_indices is not None:
        return sorted_indices.shape[0]
    if h0 is not None and h0.dim() == 3 and _is_compiling():
        return h0.shape[1]
    return packed_rows(batch_sizes)


def _permuted(state: Any, order: Maybe) -> Any:
    return state if order is None or state is None else state.index_select(1, order)


def _check_input(dtype: torch.dtype, given: int, weights: Sequence[Tensor], features: int) -> None:
    if dtype != weights[0].dtype and not _autocasts():
        raise checks.input_dtype(dtype, weights[0].dtype)
    if given != features:
        raise checks.input_size(features, given)


def _check_states(h0: Tensor, c0: Maybe, slots: int, batch: int, features: int, hidden: int) -> None:
    if h0.shape != (slots, batch, features):
        raise checks.state_size("hidden" if c0 is None else "hidden[0]", (slots, batch, features), h0)
    if c0 is not None and c0.shape != (slots, batch, hidden):
        raise checks.state_size("hidden[1]", (slots, batch, hidden), c0)


def check_reset(reset: Any, input: Tensor, shape: Sequence[int]) -> None:
    if not isinstance(reset, Tensor) or reset.dtype != torch.bool:
        raise checks.reset_type(reset)
    if reset.shape != shape:
        raise checks.reset_size(tuple(shape), reset)
    if reset.device != input.device:
        raise checks.reset_device(input.device, reset.device)


def check_packed_reset(reset: Any, input: PackedSequence) -> None:
    if not isinstance(reset, PackedSequence):
        raise checks.reset_not_packed(reset)
    check_reset(reset.data, input.data, input.data.shape[:1])
    for own, given in zip(input[1:3], reset[1:3], strict=True):  # lengths, and the order of rows
        # A graph compares no values.
        if given is not own and (own is None or given is None or not (_is_compiling() or torch.equal(own, given))):
            raise checks.reset_packing()


def check_lengths_type(lengths: Any) -> None:
    if not isinstance(lengths, Tensor) or lengths.dtype not in _INTEGERS:
        raise checks.lengths_type(lengths)


def _check_lengths(lengths: Any, shape: tuple[int, ...]) -> None:
    check_lengths_type(lengths)
    if lengths.shape != shape:
        raise checks.lengths_size(shape, lengths)


def _run(
    net: Net,
    input: Tensor,
    h0: Maybe,
    c0: Maybe,
    weights: Sequence[Tensor],
    batch_sizes: Maybe,
    reset: Maybe,
    lengths: Maybe,
    batch_first: bool,
    cells: bool,
    recorder: Standing | None,
    order: Maybe = None,
) -> tuple[Any, ...]:
    """Checked arguments -> y, hn, cn (or None), c of every step (or None), by the kernels where there are any.

    ``order``: which row of the batch given each row is, None where they are the same.
    """
    dtype, (variant, connection, drops) = input.dtype, net[-3:]
    unusual = cells or lengths is not None
    exports = unusual and onnx_nodes.exporting()
    if exports and (cells or not _is_compiling()):
        raise checks.onnx_cells() if cells else checks.onnx_lengths()
    # What torch's own functions do not know.
    ours_alone = unusual or reset is not None or variant is not None or drops is not None or recorder is not None
    if _autocasts():
        device = input.device.type
        ours = device == "cpu" or (device == "cuda" and not WITHOUT_CUDA) or ours_alone
        if ours and torch.is_autocast_enabled(device):
            input, h0, c0, weights = autocast(net[0], device, input, h0, c0, weights)
            with torch.autocast(device, enabled=False):  # the ops' own products must not be cast again
                others = (batch_sizes, reset, lengths, batch_first, cells, recorder, order)
                return _run(net, input, h0, c0, weights, *others)
    kernels = has_kernels(input, h0, c0, weights)
    if not kernels and WITHOUT_CUDA and input.is_cuda:
        where = "through plain torch, step by step," if ours_alone else "to torch's own functions,"
        fallback.warn_once(f"CUDA tensors go {where} as {WITHOUT_CUDA}")
    if not kernels and not ours_alone and connection is None:
        return *fallback.run(net, input, h0, c0, weights, batch_sizes, batch_first), None
    if h0 is not None and (h0.dtype != dtype or (c0 is not None and c0.dtype != dtype)):
        raise checks.state_dtype((h0,) if c0 is None else (h0, c0), dtype)
    one: OneLayer = layer if kernels else by_reference if ours_alone else fallback.layer
    packing = None
    if lengths is not None and readable(lengths, input, waits=recorder is not None):
        packing = Packing(lengths, input.shape[1 if batch_first else 0], batch_first, input.device)
    if recorder is not None:
        if lengths is not None and packing is None:
            raise checks.recorded_lengths()
        one = recorder(one, kernels)
    if packing is not None:
        rows = Rows(net[1], packing.order, packing.batch_sizes)
        net = (net[0], len(packing.order), *net[2:])
        first_h, first_c = packing.initial(h0), packing.initial(c0)
        x, marks = packing.pack(input), packing.pack(reset)
        y, hn, cn, c = stack(one, net, x, first_h, first_c, weights, rows, marks, cells)
        return packing.pad(y), packing.final(hn, h0), packing.final(cn, c0), packing.pad(c)
    if batch_first:
        input = input.transpose(0, 1)
        reset = None if reset is None else reset.transpose(0, 1).contiguous()
    if lengths is not None:
        padding = Padding(onnx_nodes.layer if exports else one, lengths, input)
        one, input = (padding.node if exports else padding.layer), padding.masked(input)
    y, hn, cn, c = stack(one, net, input, h0, c0, weights, Rows(net[1], order, batch_sizes), reset, cells)
    if batch_first:
        y, c = y.transpose(0, 1), None if c is None else c.transpose(0, 1)
    return y, hn, cn, c
