"""``Stream``: inference that arrives a few steps at a time, on weights that are packed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.modules import rnn as _torch

from . import _C, checks, ops
from .layouts import renew
from .module_base import SequenceModule
from .reference import Cell, Variant, split_weights

__all__ = ["Stream"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_FORWARDS = {cls.forward for cls in (_torch.LSTM, _torch.GRU, _torch.RNN, SequenceModule)}
_MOST_ROWS = 2**31 - 1
_CPU = torch.device("cpu")  # whatever the default device is
_ROWS = (torch.int64, torch.int32, torch.int16, torch.int8)
_empty = torch.empty
_is_grad_enabled = torch.is_grad_enabled
_is_tracing = torch._C._is_tracing  # past the Python part
_modes = torch._C._len_torch_dispatch_stack
_mode = torch._C._get_dispatch_mode
_PROXY = torch._C._TorchDispatchModeKey.PROXY


class Stream:
    """Inference of a module whose input arrives a few steps at a time, for B independent streams side by side.

    The weights are **frozen**: copied and packed for the kernels when the stream is made. What is written to the module
    later does not reach it; make a new one. (The modules themselves never work on old weights: they pack at each call.)
    The state, zero at first, stays inside, in float32 for 16-bit types, and moves on with each call, which adds a few
    microseconds to its products; nothing is recorded for a backward pass, dropout is left out, and hooks are not called
    (but those of ``torch.nn.utils`` that make weights). ::

        stream = fused_rnn.Stream(module, batch_size=1)
        for frame in frames:  # [B, I]
            y = stream(frame)  # [B, R]

    Call: ``stream(input)`` takes one step, [B, I] -> [B, R], or several, [T, B, I] -> [T, B, R] ([B, T, ..] if the
    module is ``batch_first``), R being H, or P with a projection. ValueError for another rank, dtype or device;
    RuntimeError for sizes that do not fit, no steps, or an input that requires grad where gradients are recorded.

    Args:
        module: an LSTM, GRU or RNN of this package or of ``torch.nn``, of one direction, on the CPU.
        batch_size: B, the number of streams.

    Raises:
        TypeError: ``module`` is none of these, or has a ``forward`` of its own, as a subclass may.
        ValueError: it is bidirectional, has connections between its layers, is on another device, or of a dtype without
            kernels; a ``batch_size`` below 1 or above 2^31 - 1.
        RuntimeError: sizes of its weights do not fit each other.
    """

    def __init__(self, module: _torch.RNNBase, batch_size: int = 1) -> None:
        if not isinstance(module, _torch.RNNBase):
            raise TypeError(f"Stream takes an LSTM, GRU or RNN module, got {type(module).__name__}")
        if "forward" in vars(module) or type(module).forward not in _FORWARDS:
            name = type(module).__name__
            raise TypeError(f"Stream cannot know what the forward of its own does that {name} has")
        if module.bidirectional:
            raise ValueError("Stream takes modules of one direction: the other one begins at the end of the sequence")
        if getattr(module, "connection", None) is not None:
            raise ValueError(f"Stream takes stacks without connections, got connection={module.connection!r}")
        renew(module)
        weights = [getattr(module, name).detach() for name in module._flat_weights_names]
        dtype = weights[0].dtype
        if not all(weight.is_cpu for weight in weights):
            raise ValueError(f"Stream runs on the CPU, the module is on {weights[0].device}")
        if dtype not in _DTYPES or any(weight.dtype != dtype for weight in weights):
            raise ValueError(f"Stream takes one of {', '.join(map(str, _DTYPES))} for all weights, got {dtype}")
        cell, variant = Cell[module.mode], getattr(module, "variant", None)
        self._set(batch_size, dtype, module.batch_first, module.input_size, module.hidden_size, module.proj_size)
        self._layers, self._has_c = module.num_layers, cell is Cell.LSTM
        kept = [_plain(weight) for weight in weights]  # until they are packed
        self._check_weights(kept, int(cell), variant)
        each = len(kept) // self._layers
        layers = []
        for first in range(0, len(kept), each):
            parts = split_weights(kept[first : first + each], 1, cell, variant)[0]
            sizes = parts.w_ih.shape[1], module.hidden_size, self._features
            layers.append([*sizes, *map(_address, parts)])
        self._stream = _C.Stream(str(dtype).removeprefix("torch."), int(cell), variant or (), batch_size, layers)

    def _set(
        self, batch_size: int, dtype: torch.dtype, batch_first: bool, features: int, hidden: int, projection: int
    ) -> None:
        if not isinstance(batch_size, int) or not 1 <= batch_size <= _MOST_ROWS:
            raise ValueError(f"batch_size must be a positive int below 2^31, got {batch_size!r}")
        self._batch, self._dtype, self._batch_first = batch_size, dtype, batch_first
        self._input_size, self._hidden, self._features = features, hidden, projection or hidden

    def _check_weights(self, weights: Sequence[Tensor], cell: int, variant: Variant | None) -> None:
        """One step of the op, which refuses what does not fit: the kernels of streams trust every size."""
        widths = (self._input_size, self._features, self._hidden)
        x, h, c = (torch.zeros((1, 1, width), dtype=self._dtype, device=_CPU) for width in widths)
        ops.stack_forward(x, h, c if self._has_c else None, weights, None, cell, self._layers, variant=variant)

    def __call__(self, input: Tensor) -> Tensor:
        """The next step, [B, I] -> [B, R], or steps, [T, B, I] -> [T, B, R] ([B, T, ..] if the module is batch_first).

        R is H, or P with a projection.

        Raises:
            TypeError: no tensor.
            ValueError: another rank, dtype or device than the stream's.
            RuntimeError: sizes that do not fit; no steps; an input that requires grad, where gradients are recorded, or
                has a tangent; a trace, or a tensor without memory, as in ``torch.export``.
        """
        if not isinstance(input, Tensor):
            raise TypeError(f"Stream: Expected input to be a tensor, got {type(input).__name__}")
        shape = input.shape
        if input.dtype is not self._dtype or not input.is_cpu:
            raise self._mismatch(input)
        if input.requires_grad and _is_grad_enabled():
            raise RuntimeError("Stream is for inference: its input requires grad; use the module, or torch.no_grad()")
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(input).tangent is not None:
            raise RuntimeError("Stream is for inference: its input has a tangent; use the module")
        if len(shape) == 2:
            batch, features = shape
            steps = 1
            result: tuple[int, ...] = (self._batch, self._features)
        elif len(shape) == 3:
            if self._batch_first:
                input = input.transpose(0, 1)
            steps, batch, features = input.shape
            result = (steps, self._batch, self._features)
        else:
            raise ValueError(f"Stream: Expected input to be 2D (one step) or 3D, got {len(shape)}D instead")
        if features != self._input_size:
            raise checks.input_size(self._input_size, features)
        if batch != self._batch:
            raise RuntimeError(f"Stream: Expected a batch of {self._batch}, got {batch}")
        if not steps:
            raise checks.no_steps()
        input = input.contiguous()
        if input.is_neg():
            input = input.resolve_neg()
        output = _empty(result, dtype=self._dtype, device=_CPU)
        x, y = input.data_ptr(), output.data_ptr()
        if not (x and y) or _is_tracing() or (_modes() and _mode(_PROXY) is not None):
            raise checks.no_memory()
        self._stream.run(x, steps, y)
        return output.transpose(0, 1) if self._batch_first and len(shape) == 3 else output

    def _mismatch(self, input: Tensor) -> ValueError:
        if not input.is_cpu:
            return ValueError(f"Stream runs on the CPU, the input is on {input.device}")
        return checks.input_dtype(input.dtype, self._dtype)

    @property
    def state(self) -> Any:
        """A copy of the state as the modules have it, h [L, B, R] or an LSTM's (h, c [L, B, H]). May be set."""
        widths = (self._features, self._hidden) if self._has_c else (self._features,)
        parts = [_empty((self._layers, self._batch, width), dtype=self._dtype, device=_CPU) for width in widths]
        self._stream.read_state(*_two_addresses(parts))
        return tuple(parts) if self._has_c else parts[0]

    @state.setter
    def state(self, state: Any) -> None:
        states = tuple(state) if self._has_c and isinstance(state, tuple | list) else (state,)
        names = ("hidden[0]", "hidden[1]") if self._has_c else ("hidden",)
        if len(states) != len(names):
            raise checks.state_count()
        for which, width, given in zip(names, (self._features, self._hidden), states, strict=False):
            if not isinstance(given, Tensor):
                raise checks.state_type(which, given)
            expected = (self._layers, self._batch, width)
            if given.shape != expected:
                raise checks.state_size(which, expected, given)
            if not given.is_cpu:
                raise ValueError(f"Stream runs on the CPU, the state is on {given.device}")
            if given.dtype != self._dtype:
                raise checks.state_dtype(states, self._dtype)
        parts = [_plain(part.detach()) for part in states]
        self._stream.write_state(*_two_addresses(parts))

    def reset(self, rows: Tensor | Sequence[int] | None = None) -> None:
        """Zero state: for all B streams, for those of a mask (bool [B]), or for those numbered.

        Raises:
            IndexError: a number that is not one of the B streams', or a mask of another size.
            TypeError: rows that are neither bool nor signed integers.
        """
        if rows is None:
            self._stream.clear()
            return
        if not isinstance(rows, Tensor):
            rows = list(rows)
            rows = torch.tensor(rows, dtype=None if rows else torch.int64, device=_CPU)
        if rows.dtype == torch.bool:
            if rows.shape != (self._batch,):
                raise IndexError(f"The shape of the mask {list(rows.shape)} does not match the batch of {self._batch}")
            rows = rows.nonzero()
        elif rows.dtype not in _ROWS:  # uint8 indexes as a mask in torch
            raise TypeError(f"rows must be a bool mask or signed integers, got {rows.dtype}")
        numbers = rows.flatten().tolist()
        for row in numbers:
            if not -self._batch <= row < self._batch:
                raise IndexError(f"index {row} is out of bounds for a batch of {self._batch}")
        self._stream.clear([row % self._batch for row in numbers])

    def __reduce__(self) -> Any:
        raise TypeError("a Stream is neither copied nor pickled: fork() makes another one, Stream(module) a new one")

    def fork(self, batch_size: int | None = None) -> Stream:
        """Another stream on the same packed weights, of zero state; say one for each thread, as calls on one stream
        wait for each other."""
        other = Stream.__new__(Stream)
        other.__dict__.update(self.__dict__)
        if batch_size is not None:
            other._set(batch_size, self._dtype, self._batch_first, self._input_size, self._hidden, self._features)
        other._stream = self._stream.fork(other._batch)
        return other


def _plain(tensor: Tensor) -> Tensor:
    """The same numbers as they lie in memory."""
    return tensor.resolve_neg().contiguous()


def _address(tensor: Tensor | None) -> int:
    if tensor is None:
        return 0
    address = tensor.data_ptr()
    if not address:
        raise checks.no_memory()
    return address


def _two_addresses(state: Sequence[Tensor]) -> tuple[int, int]:
    """h's, and c's or 0."""
    h, *c = map(_address, state)
    return h, c[0] if c else 0
