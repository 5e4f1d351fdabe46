"""Rows of a padded batch that have lengths of their own (``lengths=``): what lies past their ends plays no part.

Where the numbers can be read for nothing, or their price does not matter, the steps that there are become a packed
sequence (:class:`Packing`), which costs what they cost. Where they cannot, in a graph, under a transform or on another
device, every row is walked to the last step and masked past its own (:class:`Padding`): shapes are fixed, and nothing
waits for a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .reference import Activation, Cell, Variant
from .transfer import sent
from .transforms import transformed

_mode = torch._C._get_dispatch_mode
_TRACERS = tuple(getattr(torch._C._TorchDispatchModeKey, name) for name in ("FAKE", "PROXY", "FUNCTIONAL"))

__all__ = ["Packing", "Padding", "grows", "readable"]

Maybe = Tensor | None


def readable(lengths: Tensor, input: Tensor, waits: bool) -> bool:
    """Whether to look at the numbers: in eager mode, where no graph keeps them; on the CPU, where nothing waits for it,
    or, if the caller ``waits``, on any device. Modes that only look on, as a counter of operations, change nothing: a
    checkpoint's forward may be inside of one, and what it does again not."""
    recorded = (
        torch.compiler.is_compiling() or torch.jit.is_tracing() or any(_mode(key) is not None for key in _TRACERS)
    )
    return (input.is_cpu or waits) and type(lengths) is Tensor and not recorded and not transformed()


def _beside(lengths: Tensor, x: Tensor) -> Tensor:
    """int64, on the device of x."""
    if lengths.is_cpu and x.is_cuda:
        # What the caller pinned a device would read later, when it may have been changed: a copy is not pinned.
        return sent(lengths.to(torch.int64, copy=True), x.device)
    return lengths.to(x.device, torch.int64)


_UNBOUNDED = {Activation.RELU, Activation.IDENTITY}


def grows(cell: int, variant: Variant | None) -> bool:
    """Whether a state may grow without bound while x is zero, as a relu's does. Past a row's end it must not: of an
    infinite one, the zeros that come back there make NaN in the gradients of the weights."""
    gate, state = (Activation.OWN, Activation.OWN) if variant is None else (variant.gate, variant.state)
    if cell == Cell.RNN_RELU and state == Activation.OWN:
        return True
    return gate in _UNBOUNDED or state in _UNBOUNDED


class Packing:
    """The steps that there are, as a packed sequence has them: the longest row first, rows without a step left out.

    lengths: integers [B] on any device, those out of range taken as 0 or T. Padded tensors are on ``device`` and
    [T, B, ..], with ``batch_first`` [B, T, ..].
    """

    def __init__(self, lengths: Tensor, steps: int, batch_first: bool, device: torch.device) -> None:
        longest_first, order = lengths.to("cpu", torch.int64).clamp(0, steps).sort(descending=True, stable=True)
        self.batch = len(order)
        order = order[: int(longest_first.count_nonzero())]
        self.order = sent(order, device)  # [B'], which row of the batch each of the packed is
        self.sizes = (self.batch, steps) if batch_first else (steps, self.batch)
        last = int(longest_first[0]) if self.batch else 0
        there = torch.arange(max(last, 1), device="cpu").unsqueeze(1) < longest_first[: len(order)]
        self.batch_sizes = there.sum(1)  # one step of no rows, where there is none at all
        t, b = there.nonzero(as_tuple=True)
        places = order[b] * steps + t if batch_first else t * self.batch + order[b]
        self.places = sent(places, device)  # [N], in the padded

    def pack(self, padded: Maybe) -> Any:
        """[T, B, ..] or [B, T, ..] -> [N, ..]."""
        return None if padded is None else padded.flatten(0, 1).index_select(0, self.places)

    def pad(self, rows: Maybe) -> Any:
        """[N, ..] -> [T, B, ..] or [B, T, ..], zero where there is no step."""
        if rows is None:
            return None
        zeros = rows.new_zeros((self.sizes[0] * self.sizes[1], *rows.shape[1:]))
        return zeros.index_copy(0, self.places, rows).unflatten(0, self.sizes)

    def initial(self, state: Maybe) -> Any:
        """[L*D, B, ..] -> [L*D, B', ..]."""
        return None if state is None else state.index_select(1, self.order)

    def final(self, state: Maybe, initial: Maybe) -> Any:
        """[L*D, B', ..] -> [L*D, B, ..]; a row without a step has its ``initial`` one (None: zeros)."""
        if state is None:
            return None
        if initial is None:
            initial = state.new_zeros((state.shape[0], self.batch, state.shape[2]))
        return initial.index_copy(1, self.order, state)


class Padding:
    """Layers whose rows are all walked to step T by ``one``, which is ``autograd.layer`` or stands for it.

    Each direction is a forward one: the reverse direction has rows that are turned around, each within its length, so
    that it begins at the row's own last step.
    lengths: integers [B] on any device, those out of range taken as 0 or T. x: [T, B, ..].
    """

    def __init__(self, one: Callable[..., tuple[Tensor, Tensor, Maybe, Maybe]], lengths: Tensor, x: Tensor) -> None:
        self.one = one
        self.lengths = _beside(lengths, x).clamp(0, x.shape[0])  # [B]
        self.time = torch.arange(x.shape[0], device=x.device).unsqueeze(1)  # [T, 1]
        self.there = self.time < self.lengths  # [T, B]
        self.turned = torch.where(self.there, self.lengths - 1 - self.time, self.time)  # [T, B], from which step
        self.begun = (self.lengths > 0).unsqueeze(1)  # [B, 1]
        self.last = (self.lengths - 1).clamp(min=0).view(1, -1, 1)  # [1, B, 1]

    def masked(self, rows: Tensor) -> Tensor:
        """[T, B, ..], zero past the ends: replaced, as a product with zero would keep NaN, and its gradient too."""
        return torch.where(self.there.unsqueeze(-1), rows, 0)

    def layer(
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
    ) -> tuple[Tensor, Tensor, Maybe, Maybe]:
        """One layer, as ``autograd.layer``; x is zero past the ends, and never packed."""
        each = len(weights) // len(h0)
        first_cs: Sequence[Maybe] = (None,) * len(h0) if c0 is None else c0.unbind()
        ys, hs, cs, cns = [], [], [], []
        for d, (h, c) in enumerate(zip(h0.unbind(), first_cs, strict=True)):
            inputs = (self._turned(x) if d else x, self._begun(h), self._begun(c), weights[d * each : (d + 1) * each])
            marks = self._resets(reset, grows(cell, variant), d == 1)
            own = None if seed is None else seed[d : d + 1]
            options = (None, cell, recompute, marks, reset_initial, variant, own)
            y, _, _, every_c = self.one(*inputs, *options, c is not None)
            hs.append(self._final(y, h))
            ys.append(self._turned(y) if d else y)
            if c is not None and every_c is not None:
                cns.append(self._final(every_c, c))
                cs.append(self._turned(every_c) if d else every_c)
        every_c = self.masked(torch.cat(cs, -1)) if cells else None
        return self.masked(torch.cat(ys, -1)), torch.stack(hs), torch.stack(cns) if cns else None, every_c

    def node(
        self, x: Tensor, h0: Tensor, c0: Maybe, *options: Any, zero_states: bool = False
    ) -> tuple[Tensor, Tensor, Maybe, None]:
        """One layer by a ``one`` that knows lengths, from 1 on, as ``onnx_nodes.layer`` does, in both directions."""
        y, hn, cn, _ = self.one(x, h0, c0, *options, lengths=self.lengths.clamp(min=1), zero_states=zero_states)
        hn = torch.where(self.begun, hn, 0 if zero_states else h0)
        if cn is not None and c0 is not None:
            cn = torch.where(self.begun, cn, 0 if zero_states else c0)
        return self.masked(y), hn, cn, None

    def _turned(self, rows: Tensor) -> Tensor:
        """[T, B, ..], and back."""
        return rows.gather(0, self.turned.unsqueeze(-1).expand_as(rows))

    def _begun(self, state: Maybe) -> Any:
        """[B, ..] -> [1, B, ..]: rows without a step are walked too, from zero."""
        return None if state is None else torch.where(self.begun, state, 0).unsqueeze(0)

    def _final(self, rows: Tensor, initial: Tensor) -> Tensor:
        """States of every step [T, B, ..] -> those of each row's last one [B, ..]."""
        last = rows.gather(0, self.last.expand(1, *rows.shape[1:])).squeeze(0)
        return torch.where(self.begun, last, initial)

    def _resets(self, reset: Maybe, grows: bool, turned: bool) -> Maybe:
        """[T, B] of rows as they are walked. In reverse an episode that begins at step t ends with it: the state of the
        turned row is cleared before its step length - t. What would grow is cleared at each step past the end."""
        if reset is not None and turned:
            later = (self.time > 0) & self.there
            reset = reset.gather(0, torch.where(later, self.lengths - self.time, 0)) & later
        if not grows:
            return reset
        past = self.time >= self.lengths
        return past if reset is None else reset | past
