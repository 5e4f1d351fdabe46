"""What the backward of a recorded call tells of the gradients inside of it: where ``diagnostics`` reads.

While a module is recorded, ``network.py`` calls each of its layers through a :class:`CallRecord`. The kernels tell of
the gradients as they pass (``ops.Square``); where there are none hooks do, on every step of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from . import checks, ops
from .kept import lazy_clone
from .ops import Save, Square
from .reference import Cell, State, Variant
from .transforms import transformed

__all__ = ["CallRecord", "LayerRecord", "Recorder", "Square"]

Maybe = Tensor | None


class LayerRecord:
    """One layer of one call, before and after its backward."""

    def __init__(
        self,
        cell: int,
        variant: Variant | None,
        sizes: list[int],
        hidden: int,
        directions: int,
        reset: Maybe = None,
    ) -> None:
        self.cell = Cell(cell)
        self._gated = self.cell.is_lstm or self.cell.is_gru
        self.variant = variant
        self.reset = None if reset is None else reset.flatten()  # [N]
        self.sizes = sizes  # rows of each step
        self.hidden, self.directions = hidden, directions
        self.squares: Maybe = None  # f64 [8, D, N], of ops.Square; None before a backward
        self.saved: Maybe = None  # [D, N, S*H] as a forward keeps it (docs/design.md), of an RNN y, or none
        self.keeps = False  # whether to keep them

    @cached_property
    def begins(self) -> list[int]:
        """The row that each step begins with."""
        return [0, *accumulate(self.sizes)]

    def told(self, squares: Tensor, saved: Tensor, y: Tensor) -> None:
        """Called by a backward of the kernels."""
        self.squares = squares
        if self.keeps:
            self.keep(saved, y)

    def keep(self, saved: Tensor, y: Tensor) -> None:
        """What a forward kept for its backward. That y is nobody else's on the CPU; elsewhere it is copied, if it is
        changed in place later."""
        self.saved = saved if self._gated else y if y.is_cpu else lazy_clone(y)

    def saved_of(self, direction: int) -> Maybe:
        """[N, S*H], of an RNN h."""
        if self.saved is None:
            return None
        if self._gated:
            return self.saved[direction]
        return self.saved.reshape(-1, self.directions, self.hidden)[:, direction]

    def after_step(self, direction: int, t: int, state: State) -> State:
        """The same of the reference, whose every step passes here on its way to the next,"""
        if not any(s.requires_grad for s in state):
            return state
        for which, s in zip((Square.H, Square.C), state, strict=False):
            self._hook(s, which, direction, t)
        later = tuple(s.view_as(s) for s in state)
        for which, s in zip((Square.LATER_H, Square.LATER_C), later, strict=False):
            self._hook(s, which, direction, t)
        return later

    def before_step(self, direction: int, t: int, state: State) -> tuple[Tensor, State]:
        """and here when it gets there: what arrives from step t is told of the step before it in walking order."""
        before = t + 1 if direction else t - 1
        if not 0 <= before < len(self.sizes) or not any(s.requires_grad for s in state):
            return state[0], state
        h, *c = state
        through, past = h.view_as(h), h.view_as(h)
        sent = (Square.SENT_H, h), (Square.RECURRENT, through), (Square.KEPT, past), *((Square.SENT_C, s) for s in c)
        for which, s in sent:
            self._hook(s, which, direction, before, max(t, before))
        return through, (past, *c)

    def _hook(self, value: Tensor, which: Square, direction: int, t: int, meets: int | None = None) -> None:
        """``value`` has the rows of step t, or of one beside it; then ``meets`` is the later of the two, whose rows are
        in both. Where they begin with a reset, nothing comes past it."""

        def told(gradient: Tensor) -> None:
            if self.squares is None:
                shape = len(Square), self.directions, sum(self.sizes)
                self.squares = torch.zeros(shape, dtype=torch.float64, device=gradient.device)
            norms = torch.linalg.vector_norm(gradient.detach(), dim=-1, dtype=_wide(gradient.dtype))
            rows = self.sizes[t if meets is None else meets]
            squares = norms.square()[:rows]
            if meets is not None and self.reset is not None:
                squares = squares.where(~self.reset.narrow(0, self.begins[meets], rows), 0)
            self.squares[which, direction].narrow(0, self.begins[t], rows).copy_(squares)

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
        sizes = [x.shape[1]] * x.shape[0] if batch_sizes is None else batch_sizes.tolist()
        hidden = h0.shape[2] if c0 is None else c0.shape[2]
        record = LayerRecord(cell, variant, sizes, hidden, h0.shape[0], reset)
        self.layers.append(record)
        if self.gates and self.kernels:
            record.keeps, recompute = True, False  # the backward then has them
        elif self.gates and not x.is_complex():
            record.keep(*_kept(x, h0, c0, weights, batch_sizes, cell, reset, reset_initial, variant, seed))
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
    seed: Maybe,
) -> tuple[Tensor, Tensor]:
    """What a forward on the CPU keeps, for a layer that has no kernels where it runs: saved, y."""
    x, h0, *weights = (tensor.detach().cpu() for tensor in (x, h0, *weights))
    c0, reset, seed = (None if tensor is None else tensor.detach().cpu() for tensor in (c0, reset, seed))
    inputs = (x, h0, c0, weights, batch_sizes, cell, Save.ALL, reset, reset_initial, variant, seed)
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
