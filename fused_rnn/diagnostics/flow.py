"""Numbers about the gradient of each layer, direction and step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..kinds import Variant
from ..recording import CallRecord, LayerRecord, Square

__all__ = ["CallFlow", "Clipping", "GradientFlow", "LayerFlow", "Saturation", "geometric_mean"]

LOW, HIGH = 0.1, 0.9  # of gates; of values between -1 and 1, HIGH is of their size


class Saturation(NamedTuple):
    """Which share of a gate's values, over rows and units, is at an end of its range: [T] each."""

    low: Tensor  #: below 0.1, for g, n and an RNN's h below -0.9
    high: Tensor  #: above 0.9


class Clipping(NamedTuple):
    """Where a clip acted on the gradient of a state, on its way from the step after: [T] each."""

    rows: Tensor  #: int64, how many rows it cut
    factor: Tensor  #: norm of what arrived by that of what was sent, over all rows; NaN where nothing was sent


class LayerFlow:
    """One layer and direction of one call.

    Norms are over all units and rows of a step (Frobenius), f64 on the CPU, [T], indexed by the step of the sequence:
    the reverse direction walks it from the last step on. "The step after" is the one that the direction walks next,
    from which the gradient comes. A step of which no row goes on has NaN where it says what came from there.

    Attributes:
        layer: its number, from 0.
        reverse: whether it is the direction that walks backward.
        cell: "LSTM", "GRU" or "RNN".
        steps: how many, T.
        rows: int64 [T], how many rows the step has.
        clips: whether gradients are clipped between steps.
        keeps: whether part of a gradient goes past W_hh, as it does in all but an RNN without zoneout.
        reached: whether a backward came here. Where none did, as below frozen layers, numbers are a RuntimeError.
    """

    def __init__(self, layer: int, direction: int, record: LayerRecord) -> None:
        self.layer, self.reverse = layer, direction == 1
        self.cell = "LSTM" if record.cell.is_lstm else "GRU" if record.cell.is_gru else "RNN"
        self.steps = len(record.sizes)
        self.rows = torch.tensor(record.sizes, device="cpu")
        self.reached = record.squares is not None
        self._record, self._direction = record, direction
        self._saved = record.saved_of(direction)
        self._hidden = record.hidden
        variant = record.variant or Variant()
        self._coupled = variant.coupled
        self.clips = variant.clips
        self.keeps = self.cell != "RNN" or variant.zoneout_h > 0

    @cached_property
    def _squares(self) -> Tensor:
        """[8, N]"""
        if self._record.squares is None:
            raise _no_backward()
        return self._record.squares[:, self._direction].cpu()

    @cached_property
    def _begun(self) -> Tensor:
        """[N], which rows have a state that the step before them, in walking order, did not leave: a reset did."""
        reset, sizes = self._record.reset, self.rows.tolist()
        if reset is None:
            return torch.zeros(sum(sizes), dtype=torch.bool, device="cpu")
        if not self.reverse:
            return reset.cpu()
        after = [*reset.cpu().split(sizes)[1:], torch.zeros(0, dtype=torch.bool, device="cpu")]
        return torch.cat([pad(of, (0, size - len(of))) for of, size in zip(after, sizes, strict=True)])

    @cached_property
    def _going_on(self) -> list[int]:
        """How many rows of each step have one after it: they are its first."""
        sizes = self.rows.tolist()
        return [0, *sizes[1:]] if self.reverse else [*sizes[1:], 0]

    def _sums(self, which: Sequence[int], rows: Sequence[int]) -> Tensor:
        """Sums of squares over the first ``rows[t]`` rows of step t: [T]."""
        return self._of_steps(self._squares[list(which)].sum(0), rows)

    def _of_steps(self, squares: Tensor, rows: Sequence[int]) -> Tensor:
        by_step = squares.split(self.rows.tolist())
        return torch.stack([step[:count].sum() for step, count in zip(by_step, rows, strict=True)])

    def _whole(self, which: int) -> Tensor:
        return self._sums([which], self.rows.tolist()).sqrt()

    def _came(self, *which: int) -> Tensor:
        there = torch.tensor(self._going_on, device="cpu") > 0
        return torch.where(there, self._sums(which, self._going_on).sqrt(), math.nan)

    @cached_property
    def h(self) -> Tensor:
        """The norm of dL/dh_t, everything that comes to h_t."""
        return self._whole(Square.H)

    @cached_property
    def c(self) -> Tensor | None:
        """That of dL/dc_t, by way of h_t too; LSTM, else None."""
        return self._whole(Square.C) if self.cell == "LSTM" else None

    @cached_property
    def kept(self) -> Tensor:
        """The norm of what the step after sent past W_hh.

        LSTM f dL/dc, to c_t; GRU z dL/dh, to h_t; with zoneout what passes by it, to either; RNN else 0. Where
        gradients are clipped: as they were before."""
        return self._came(Square.KEPT, Square.SENT_C)

    @cached_property
    def recurrent(self) -> Tensor:
        """The norm of what the step after sent to h_t through W_hh (and a mask of recurrent dropout), before a clip."""
        return self._came(Square.RECURRENT)

    @cached_property
    def share_kept(self) -> Tensor:
        """The share of what came that travelled the path of the state, kept^2 / (kept^2 + recurrent^2)."""
        kept = self.kept.square()
        return kept / (kept + self.recurrent.square())

    @property
    def share_recurrent(self) -> Tensor:
        """The share that came through the recurrent matrix, 1 - share_kept."""
        return 1 - self.share_kept

    @cached_property
    def transmission(self) -> Tensor:
        """How much of the gradient with respect to the state after it arrives at step t, as a factor.

        The state of an LSTM is (h, c), of others h. What a step's own output adds does not count, so this is the same
        kind of number with a loss at the end and one at every step; nor do rows that a reset keeps from coming. NaN
        where the step after had none. (A loss on ``cells`` is not known of: what it sends
        to c of the step after is missing in the divisor.)
        """
        state = [Square.H, Square.LATER_C] if self.cell == "LSTM" else [Square.H]
        came = self._sums([Square.LATER_H, *state[1:]], self._going_on)
        rows = self._going_on  # the same rows of the step after, but for those that began anew there
        sent = self._squares[state].sum(0).masked_fill(self._begun, 0)
        if self.reverse:
            after = self._of_steps(sent, [*rows[1:], 0]).roll(1)
        else:
            after = self._of_steps(sent, [0, *rows[:-1]]).roll(-1)
        return torch.where(torch.tensor(rows, device="cpu") > 0, (came / after).sqrt(), math.nan)

    @cached_property
    def rate(self) -> float:
        """The geometric mean of ``transmission``. Below 1 the gradient shrinks, 0 where a step passed nothing of it on;
        above 1 it grows; NaN if no step had any to pass on."""
        factors = self.transmission
        return geometric_mean(factors[factors.isfinite()])

    @cached_property
    def clipping(self) -> dict[str, Clipping]:
        """Where a clip acted, by the state, "h" and an LSTM's "c". Empty if the layer clips nothing."""
        kinds = {"h": (Square.SENT_H, Square.LATER_H), "c": (Square.SENT_C, Square.LATER_C)}
        shown = (["h", "c"] if self.cell == "LSTM" else ["h"]) if self.clips else []
        return {state: self._clipped(*kinds[state]) for state in shown}

    def _clipped(self, sent: int, came: int) -> Clipping:
        cut = (self._squares[came] < self._squares[sent]).split(self.rows.tolist())
        rows = [step[:count].sum() for step, count in zip(cut, self._going_on, strict=True)]
        return Clipping(torch.stack(rows), self._came(came) / self._came(sent))

    @property
    def has_gates(self) -> bool:
        """Whether ``gates`` and ``saturation`` can be asked for."""
        return self._saved is not None

    @cached_property
    def _kinds(self) -> dict[str, Tensor]:
        """Gates by their letters, [N, H] each; of an RNN h."""
        if self._saved is None:
            raise RuntimeError("gates were not recorded (gates=False, or complex numbers)")
        letters = {"LSTM": "fgo" if self._coupled else "ifgo", "GRU": "rzn", "RNN": "h"}[self.cell]
        blocks = self._saved.detach().split(self._hidden, -1)
        return {letter: blocks[k].float().cpu() for k, letter in enumerate(letters)}

    @cached_property
    def gates(self) -> dict[str, Tensor]:
        """The mean over rows of each gate's values, [T, H], by its letter. LSTM i, f, g, o; GRU r, z, n; RNN h."""
        sizes = self.rows.tolist()
        return {name: torch.stack([s.mean(0) for s in of.split(sizes)]) for name, of in self._kinds.items()}

    @cached_property
    def saturation(self) -> dict[str, Saturation]:
        """The share of saturated values of each gate, by the thresholds of Karpathy, Johnson and Fei-Fei 2015,
        "Visualizing and understanding recurrent networks"."""

        def share(values: Tensor) -> Tensor:
            return torch.stack([s.double().mean() for s in values.split(self.rows.tolist())])

        low = {name: -HIGH if name in "gnh" else LOW for name in self._kinds}
        return {name: Saturation(share(v < low[name]), share(v > HIGH)) for name, v in self._kinds.items()}

    @property
    def name(self) -> str:
        """Which it is, as in "layer 0" or "layer 0 reverse"."""
        return f"layer {self.layer}{' reverse' if self.reverse else ''}"


class CallFlow:
    """One call of one module: ``layers``, both directions of each side by side; ``name`` of the module in its model."""

    def __init__(self, name: str, call: CallRecord) -> None:
        self.name, self._call = name, call

    @property
    def reached(self) -> bool:
        """Whether a backward came to it. Of the two calls that ``torch.utils.checkpoint`` makes, it comes to one."""
        return any(record.squares is not None for record in self._call.layers)

    @cached_property
    def layers(self) -> list[LayerFlow]:
        """Each layer and direction. To be read after the backward, as a later one through the same call is not looked
        at again; before it a RuntimeError."""
        if not self.reached:
            raise _no_backward()
        records = enumerate(self._call.layers)
        return [LayerFlow(i, d, record) for i, record in records for d in range(record.directions)]


class GradientFlow:
    """What :func:`gradient_flow` found: ``calls``, one :class:`CallFlow` for each call of a recorded module."""

    def __init__(self) -> None:
        self._records: list[tuple[str, CallRecord]] = []
        self._flows: list[CallFlow] = []

    @property
    def calls(self) -> list[CallFlow]:
        """One for each call of a recorded module, in the order of the calls."""
        self._flows += [CallFlow(name, call) for name, call in self._records[len(self._flows) :]]
        return list(self._flows)

    @property
    def layers(self) -> list[LayerFlow]:
        """Those of the only call, or the only one that a backward came to.

        Raises:
            RuntimeError: if there were none or several, or no backward came by.
        """
        calls = self.calls
        if len(calls) > 1:
            calls = [call for call in calls if call.reached] or calls
        if len(calls) != 1:
            raise RuntimeError(f"gradient_flow saw {len(calls)} calls: read .calls, which has each")
        return calls[0].layers


def geometric_mean(factors: Tensor) -> float:
    """NaN of none."""
    return float(factors.log().mean().exp()) if len(factors) else math.nan


def _no_backward() -> RuntimeError:
    return RuntimeError(
        "no backward came to this layer while gradient_flow looked (it does not see that of a compiled module)"
    )
