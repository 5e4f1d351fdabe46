"""``Stream``: inference that arrives a few steps at a time, on weights that are packed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.rnn import RNNBase

from . import _C, checks
from .reference import Cell, split_weights

__all__ = ["Stream"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_empty = torch.empty
_is_grad_enabled = torch.is_grad_enabled


class Stream:
    """Inference of a module whose input arrives a few steps at a time, for B independent streams side by side.

    The weights are **frozen**: copied and packed for the kernels when the stream is made. What is written to the module
    later does not reach it; make a new one. (The modules themselves never work on old weights: they pack at each call.)
    The state, zero at first, stays inside, in float32 for 16-bit types, and moves on with each call. A call costs a few
    microseconds; nothing is recorded for a backward pass, and dropout is left out. ::

        stream = fused_rnn.Stream(module, batch_size=1)
        for frame in frames:  # [B, I]
            y = stream(frame)  # [B, R]

    Args:
        module: an LSTM, GRU or RNN of this package or of ``torch.nn``, of one direction, on the CPU.
        batch_size: B, the number of streams.

    Raises:
        TypeError: ``module`` is none of these.
        ValueError: it is bidirectional, has connections between its layers, is on another device, or of a dtype without
            kernels; a ``batch_size`` below 1.
    """

    def __init__(self, module: RNNBase, batch_size: int = 1) -> None:
        if not isinstance(module, RNNBase):
            raise TypeError(f"Stream takes an LSTM, GRU or RNN module, got {type(module).__name__}")
        if module.bidirectional:
            raise ValueError("Stream takes modules of one direction: the other one begins at the end of the sequence")
        if getattr(module, "connection", None) is not None:
            raise ValueError(f"Stream takes stacks without connections, got connection={module.connection!r}")
        weights = [getattr(module, name).detach() for name in module._flat_weights_names]
        dtype = weights[0].dtype
        if not all(weight.is_cpu for weight in weights):
            raise ValueError(f"Stream runs on the CPU, the module is on {weights[0].device}")
        if dtype not in _DTYPES or any(weight.dtype != dtype for weight in weights):
            raise ValueError(f"Stream takes one of {', '.join(map(str, _DTYPES))} for all weights, got {dtype}")
        cell, variant = Cell[module.mode], getattr(module, "variant", None)
        self._set(batch_size, dtype, module.batch_first, module.input_size, module.hidden_size, module.proj_size)
        self._layers, self._has_c = module.num_layers, cell is Cell.LSTM
        kept = [weight.contiguous() for weight in weights]  # until they are packed
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
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive int, got {batch_size!r}")
        self._batch, self._dtype, self._batch_first = batch_size, dtype, batch_first
        self._input_size, self._hidden, self._features = features, hidden, projection or hidden

    def __call__(self, input: Tensor) -> Tensor:
        """The next step, [B, I] -> [B, R], or steps, [T, B, I] -> [T, B, R] ([B, T, ..] if the module is batch_first).

        R is H, or P with a projection.

        Raises:
            ValueError: another rank, dtype or device than the stream's.
            RuntimeError: sizes that do not fit; no steps; an input that requires grad, where gradients are recorded.
        """
        shape = input.shape
        if input.dtype is not self._dtype or not input.is_cpu:
            raise self._mismatch(input)
        if input.requires_grad and _is_grad_enabled():
            raise RuntimeError("Stream is for inference: its input requires grad; use the module, or torch.no_grad()")
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
        output = _empty(result, dtype=self._dtype)
        self._stream.run(input.data_ptr(), steps, output.data_ptr())
        return output.transpose(0, 1) if self._batch_first and len(shape) == 3 else output

    def _mismatch(self, input: Tensor) -> ValueError:
        if not input.is_cpu:
            return ValueError(f"Stream runs on the CPU, the input is on {input.device}")
        return checks.input_dtype(input.dtype, self._dtype)

    @property
    def state(self) -> Any:
        """A copy of the state as the modules have it, h [L, B, R] or an LSTM's (h, c [L, B, H]). May be set."""
        h = _empty((self._layers, self._batch, self._features), dtype=self._dtype)
        if not self._has_c:
            self._stream.read_state(h.data_ptr(), 0)
            return h
        c = _empty((self._layers, self._batch, self._hidden), dtype=self._dtype)
        self._stream.read_state(h.data_ptr(), c.data_ptr())
        return h, c

    @state.setter
    def state(self, state: Any) -> None:
        h, c = state if self._has_c else (state, None)
        expected = (self._layers, self._batch)
        for which, width, given in (("hidden[0]", self._features, h), ("hidden[1]", self._hidden, c)):
            if given is None:
                continue
            if given.shape != (*expected, width):
                raise checks.state_size(which if self._has_c else "hidden", (*expected, width), given)
            if given.dtype != self._dtype or not given.is_cpu:
                raise checks.state_dtype((h,) if c is None else (h, c), self._dtype)
        h, c = h.detach().contiguous(), None if c is None else c.detach().contiguous()
        self._stream.write_state(h.data_ptr(), _address(c))

    def reset(self, rows: Tensor | Sequence[int] | None = None) -> None:
        """Zero state: for all B streams, for those of a mask (bool [B]), or for those numbered.

        Raises:
            IndexError: a number that is not one of the B streams', or a mask of another size.
        """
        if rows is None:
            self._stream.clear()
            return
        if isinstance(rows, Tensor) and rows.dtype == torch.bool:
            if rows.shape != (self._batch,):
                raise IndexError(f"The shape of the mask {list(rows.shape)} does not match the batch of {self._batch}")
            rows = rows.nonzero().flatten()
        numbers = [int(row) for row in rows]
        for row in numbers:
            if not -self._batch <= row < self._batch:
                raise IndexError(f"index {row} is out of bounds for a batch of {self._batch}")
        self._stream.clear([row % self._batch for row in numbers])

    def fork(self, batch_size: int | None = None) -> Stream:
        """Another stream on the same packed weights, of zero state; say one for each thread, as calls on one stream
        wait for each other."""
        other = Stream.__new__(Stream)
        other.__dict__.update(self.__dict__)
        if batch_size is not None:
            other._set(batch_size, self._dtype, self._batch_first, self._input_size, self._hidden, self._features)
        other._stream = self._stream.fork(other._batch)
        return other


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
