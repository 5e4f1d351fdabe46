"""What a layer is, beside its tensors: the kind of its cell, what that does otherwise than torch's, and which weights
it has. ``reference.py`` says what they mean, and has these names too."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Activation", "Cell", "Variant", "Weights", "extra_weights", "gates_of", "split_weights"]


class Cell(IntEnum):
    """The step a layer repeats; the numbers are those of the op's ``cell`` argument.

    The linear ones have every activation replaced by the identity: integer data then gives exact results, which is
    how kernels without an f64 form are tested.
    """

    LSTM = 0
    GRU = 1
    RNN_TANH = 2
    RNN_RELU = 3
    LSTM_LINEAR = 4
    GRU_LINEAR = 5
    RNN_LINEAR = 6

    @property
    def is_lstm(self) -> bool:
        return self in (Cell.LSTM, Cell.LSTM_LINEAR)

    @property
    def is_gru(self) -> bool:
        return self in (Cell.GRU, Cell.GRU_LINEAR)

    @property
    def gates(self) -> int:
        """G: how many blocks of H rows ``w_ih`` and ``w_hh`` have."""
        return 4 if self.is_lstm else 3 if self.is_gru else 1


class Activation(IntEnum):
    """Of gates or of states; the numbers are those of the op's ``variant`` argument."""

    OWN = 0  # what torch's cell has there
    SIGMOID = 1
    HARD_SIGMOID = 2
    TANH = 3
    HARD_TANH = 4
    RELU = 5
    SOFTSIGN = 6
    IDENTITY = 7


class Variant(NamedTuple):
    """What a cell does otherwise than torch's (docs/variants.md, docs/regularisation.md), as numbers: the op's
    ``variant`` argument.

    A later option is a field at the end, whose default leaves it out.
    """

    gate: int = Activation.OWN  # of i, f, o; r, z
    state: int = Activation.OWN  # of g and c; n; an RNN's h
    peephole: bool = False  # LSTM: i and f look at c, o at the new c
    coupled: bool = False  # LSTM: i = 1 - f, without weights of its own
    reset_before: bool = False  # GRU: r multiplies h, not W_hn h + b_hn
    layer_norm: bool = False  # both products are normalised, row by row, and an LSTM's c for its h
    recurrent_dropout: float = 0.0  # probability that a unit of h is dropped on its way to W_hh, for all steps
    zoneout_h: float = 0.0  # probability that a unit of h keeps its old value in a step
    zoneout_c: float = 0.0  # likewise of an LSTM's c
    clip_value: float = 0.0  # the most that a step sends to a unit of the state before; 0 for no bound
    clip_norm: float = 0.0  # the same for the norm over the units of a row

    @classmethod
    def of(cls, numbers: Sequence[float] | None) -> Variant:
        """From the op's argument; None: torch's cell."""
        return cls(*(numbers or ()))  # type: ignore[arg-type]

    @property
    def draws(self) -> bool:
        """Whether random numbers are drawn in training."""
        return self.recurrent_dropout > 0 or self.zoneout_h > 0 or self.zoneout_c > 0

    @property
    def clips(self) -> bool:
        """Whether gradients are clipped between steps."""
        return self.clip_value > 0 or self.clip_norm > 0

    def without(self, *options: str) -> Variant | None:
        """The same but for these; None for torch's cell."""
        nothing: dict[str, Any] = dict.fromkeys(options, 0)
        left = self._replace(**nothing)
        return left if any(left) else None

    def of_outputs(self) -> Variant | None:
        """What is to be seen of it in outputs, where nothing is drawn; None for torch's cell."""
        return self.without("recurrent_dropout", "clip_value", "clip_norm")


class Weights(NamedTuple):
    """The parameters of one direction."""

    w_ih: Tensor  # [G*H, I]
    w_hh: Tensor  # [G*H, R]
    b_ih: Tensor | None  # [G*H]
    b_hh: Tensor | None  # [G*H]
    w_hr: Tensor | None  # [P, H], LSTM with projection only
    w_ch: Tensor | None = None  # [(G-1)*H], LSTM with peepholes only: of i (unless coupled), f, o
    ln_ih: Tensor | None = None  # [G*H], layer normalisation only, as what follows: gains of x W_ih^T
    ln_hh: Tensor | None = None  # [G*H], of h W_hh^T
    ln_ch: Tensor | None = None  # [H], LSTM: of c
    ln_ch_shift: Tensor | None = None  # [H]


def gates_of(cell: int, variant: Variant | None = None) -> int:
    """G: how many blocks of H rows ``w_ih`` and ``w_hh`` have."""
    return 3 if variant is not None and variant.coupled else Cell(cell).gates


def kept_gates(cell: int, variant: Variant) -> int:
    """How many vectors of H a row keeps for the backward where all is kept, an LSTM's c apart."""
    gates = gates_of(cell, variant)
    if Cell(cell).is_lstm:
        kept = gates
    else:
        kept = (3 if variant.reset_before else 4) if Cell(cell).is_gru else int(variant.zoneout_h > 0)
    return kept + (2 * gates if variant.layer_norm else 0)  # the products, too


def extra_weights(cell: int, variant: Variant | None) -> list[str]:
    """The fields of :class:`Weights` that a variant adds to those of a direction, at their end and in this order."""
    if variant is None:
        return []
    norm = ["ln_ih", "ln_hh", *(["ln_ch", "ln_ch_shift"] if Cell(cell).is_lstm else [])]
    return (["w_ch"] if variant.peephole else []) + (norm if variant.layer_norm else [])


def split_weights(
    weights: Sequence[Tensor], directions: int, cell: int, variant: Variant | None = None
) -> list[Weights]:
    """The flat list of a layer's weights, direction after direction, taken apart: its length says which there are, but
    for those that the variant adds."""
    each = len(weights) // directions
    names = extra_weights(cell, variant)
    own = len(names)
    if each - own not in (2, 3, 4, 5) or each * directions != len(weights):
        raise ValueError(
            f"expected {2 + own} to {5 + own} weights for each of {directions} directions, got {len(weights)} in all"
        )
    parts = []
    for d in range(directions):
        w_ih, w_hh, *rest = weights[d * each : (d + 1) * each]
        extra = dict(zip(names, rest[len(rest) - own :], strict=True))
        rest = rest[: len(rest) - own]
        w_hr = rest.pop() if len(rest) in (1, 3) else None
        b_ih, b_hh = rest if rest else (None, None)
        parts.append(Weights(w_ih, w_hh, b_ih, b_hh, w_hr, **extra))
    return parts
