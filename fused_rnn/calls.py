"""What type checkers are told of calls of the modules: what they return, of what and with which options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypedDict, overload

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

__all__ = ["HiddenCall", "HiddenRegularisation", "LSTMCall", "Regularisation"]

States = tuple[Tensor, Tensor]


class HiddenRegularisation(TypedDict, total=False):
    """Keywords of modules and functions (docs/regularisation.md, docs/gradient_clipping.md), a GRU's and an RNN's; each
    is off by default."""

    input_dropout: float
    variational_dropout: bool
    recurrent_dropout: float
    weight_dropout: float
    zoneout_h: float
    clip_grad_value: float | None
    clip_grad_norm: float | None


class Regularisation(HiddenRegularisation, total=False):
    """An LSTM's."""

    zoneout_c: float


class LSTMCall(Protocol):
    """An LSTM's: the states are a pair, and with ``cells`` the outputs too."""

    @overload
    def __call__(
        self,
        input: Tensor,
        hx: Sequence[Tensor] | None = None,
        *,
        reset: Tensor | None = None,
        reset_to: str = "zero",
        lengths: Tensor | None = None,
        cells: Literal[False] = False,
    ) -> tuple[Tensor, States]: ...
    @overload
    def __call__(
        self,
        input: Tensor,
        hx: Sequence[Tensor] | None = None,
        *,
        reset: Tensor | None = None,
        reset_to: str = "zero",
        lengths: Tensor | None = None,
        cells: Literal[True],
    ) -> tuple[tuple[Tensor, Tensor], States]: ...
    @overload
    def __call__(
        self,
        input: PackedSequence,
        hx: Sequence[Tensor] | None = None,
        *,
        reset: PackedSequence | None = None,
        reset_to: str = "zero",
        cells: Literal[False] = False,
    ) -> tuple[PackedSequence, States]: ...
    @overload
    def __call__(
        self,
        input: PackedSequence,
        hx: Sequence[Tensor] | None = None,
        *,
        reset: PackedSequence | None = None,
        reset_to: str = "zero",
        cells: Literal[True],
    ) -> tuple[tuple[PackedSequence, PackedSequence], States]: ...


class HiddenCall(Protocol):
    """A GRU's or an RNN's."""

    @overload
    def __call__(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        reset: Tensor | None = None,
        reset_to: str = "zero",
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def __call__(
        self,
        input: PackedSequence,
        hx: Tensor | None = None,
        *,
        reset: PackedSequence | None = None,
        reset_to: str = "zero",
    ) -> tuple[PackedSequence, Tensor]: ...
