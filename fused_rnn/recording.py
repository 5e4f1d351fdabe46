"""What the backward of a recorded call tells of the gradients inside of it: where ``diagnostics`` reads.

While a module is recorded, ``network.py`` calls each of its layers through a :class:`CallRecord`. The CPU's kernels
tell of the gradients as they pass (``ops.Square``); elsewhere hooks do, on every step of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from . import checks, ops
from .autograd import transformed
from .ops import Save, Square
from .reference import Cell, State, Variant

__all__ = ["CallRecord", "LayerRecord", "Recorder", "Square"]

Maybe = Tensor | None


class LayerRecord:
    """One layer of one call, before and after its backward."""

    def __init__(self, cell: int, variant: Variant | None, sizes: list[int], hidden: int, directions: int) -> None:
        self.cell = Cell(cell)
        self.variant = variant
        self.sizes = sizes  # rows of each step
        self.hidden, self.directions = hidden, directions
        self.squares: Maybe = None  # f64 [5, D, N], of ops.Square; None before a backward
        self.saved: Maybe = None  # [D, N, S*H] as a forward keeps it (docs/design.md), of an RNN h, or none
        self.keeps = False  # whether to keep them
        self.begins = [0, *accumulate(sizes)]  # the row that each step begins with

    def told(self, squares: Tensor, saved: Tensor, y: Tensor) -> None:
        """Called by a backward of the kernels."""
        self.squares = squares
        if self.keeps:
            self.keep(saved, y)

    def keep(self, saved: Tensor, y: Tensor) -> None:
        """What a forward kept for its backward."""
        own = saved.shape[2] > 0
        self.saved = saved if own else torch.stack(y.reshape(saved.shape[1], -1).chunk(self.directions, -1))

    def watch(self, direction: int, t: int, state: State) -> State:
        """The same of the reference, whose every step passes here on its way to the next."""
        if not state[0].requires_grad:
            return state
        self._hook(state[0], Square.H, direction, t)
        if self.cell.is_lstm:
            h, c = (s.view_as(s) for s in state)
            for which, value in ((Square.C, state[1]), (Square.LATER, h), (Square.RECURRENT, h), (Square.KEPT, c)):
                self._hook(value, which, direction, t)
            return h, c
        later = state[0].view_as(state[0])
        self._hook(later, Square.LATER, direction, t)
        parts = tuple(later.view_as(later) for _ in state)
        self._hook(parts[0], Square.RECURRENT, direction, t)
        if len(parts) == 2:
            self._hook(parts[1], Square.KEPT, direction, t)
        return parts

    def _hook(self, value: Tensor, which: Square, direction: int, t: int) -> None:
        def told(gradient: Tensor) -> None:
            if self.squares is None:
                shape = len(Square), self.directions, sum(self.sizes)
                self.squares = torch.zeros(shape, dtype=torch.float64, device=gradient.device)
            norms = torch.linalg.vector_norm(gradient.detach(), dim=-1, dtype=_wide(gradient.dtype))
            self.squares[which, direction].narrow(0, self.begins[t], self.sizes[t]).copy_(norms.square())

        if value.requires_grad:
            value.register_hook(told)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


class CallRecord:
    """One call of a module: stands for ``one``, ``autograd.layer`` or the reference, which takes a ``record``."""

    def __init__(self, one: Callable[..., tuple], kernels: bool, gates: bool) -> None:
        self.one, self.kernels, self.gates = one, kernels, gates
        self.layers: list[LayerRecord] = []

    def __call__(
        self,
        x: Tensor,
        h0: Tensor,
        c0: Maybe,
        weights: Sequence[Tensor],
        batch_sizes: Maybe,
        cell: int,
        recompute: bool,
        reset: Maybe,
        reset_initial: bool,
        variant: Variant | None,
        seed: Maybe,
        cells: bool,
    ) -> tuple:
        if variant is not None and variant.between_steps:
            raise checks.recorded_regularisation()
        sizes = [x.shape[1]] * x.shape[0] if batch_sizes is None else batch_sizes.tolist()
        hidden = h0.shape[2] if c0 is None else c0.shape[2]
        record = LayerRecord(cell, variant, sizes, hidden, h0.shape[0])
        self.layers.append(record)
        if self.gates and self.kernels:
            record.keeps, recompute = True, False  # the backward then has them
        elif self.gates and not x.is_complex():
            record.keep(*_kept(x, h0, c0, weights, batch_sizes, cell, reset, reset_initial, variant))
        inputs = (x, h0, c0, weights, batch_sizes, cell, recompute, reset, reset_initial, variant, seed, cells)
        return self.one(*inputs, record=record)


def _kept(
    x: Tensor,
    h0: Tensor,
    c0: Maybe,
    weights: Sequence[Tensor],
    batch_sizes: Maybe,
    cell: int,
    reset: Maybe,
    reset_initial: bool,
    variant: Variant | None,
) -> tuple[Tensor, Tensor]:
    """What a forward on the CPU keeps, for a layer that runs elsewhere: saved, y."""
    x, h0, *weights = (tensor.detach().cpu() for tensor in (x, h0, *weights))
    c0, reset = (None if tensor is None else tensor.detach().cpu() for tensor in (c0, reset))
    inputs = (x, h0, c0, weights, batch_sizes, cell, Save.ALL, reset, reset_initial, variant)
    y, _, _, saved = ops.layer_forward(*inputs)
    return saved, y


class Recorder:
    """What a module holds while it is recorded: of each of its calls a :class:`CallRecord`."""

    def __init__(self, name: str, calls: list[tuple[str, CallRecord]], gates: bool) -> None:
        self.name, self.calls, self.gates = name, calls, gates

    def __call__(self, one: Callable[..., tuple], kernels: bool) -> CallRecord:
        if torch.compiler.is_compiling() or transformed():
            raise checks.recorded_transform()
        call = CallRecord(one, kernels, self.gates)
        self.calls.append((self.name, call))
        return call
