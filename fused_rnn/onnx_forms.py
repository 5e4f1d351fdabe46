"""Cells as ONNX's nodes have them: attributes that make a node a variant, or weights where it has no such option.

https://onnx.ai/onnx/operators/onnx__LSTM.html (GRU, RNN). Names of activations may have numbers, alpha and beta, which
a node lists apart, in the order of those activations that take any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checks
from .layouts import ONNX, TORCH, Layer, rows_of
from .reference import Activation, Cell, Variant, Weights

__all__ = [
    "Named",
    "activations",
    "attributes",
    "coupled",
    "is_symmetric",
    "node_weights",
    "peepholes",
    "read",
    "shifts",
    "written",
]

Maybe = Tensor | None


class Named(NamedTuple):
    """An activation."""

    name: str
    alpha: float | None = None
    beta: float | None = None

    def __str__(self) -> str:
        return self.name if self.alpha is None else f"{self.name}({self.alpha:.4g}, {self.beta:.4g})"


_ACTIVATIONS: dict[int, Named] = {
    Activation.SIGMOID: Named("Sigmoid"),
    Activation.HARD_SIGMOID: Named("HardSigmoid", 1 / 6, 0.5),
    Activation.TANH: Named("Tanh"),
    Activation.HARD_TANH: Named("HardSigmoid", 0.5, 0.5),  # of s where h = 2 s - 1
    Activation.RELU: Named("Relu"),
    Activation.SOFTSIGN: Named("Softsign"),
    Activation.IDENTITY: Named("Affine", 1.0, 0.0),
}
_DEFAULTS = {"hardsigmoid": (0.2, 0.5), "affine": (1.0, 0.0)}  # alpha and beta that a node does not tell


def is_symmetric(variant: Variant | None) -> bool:
    """Whether 1 - f(x) = f(-x) for the activation of the gates."""
    return variant is None or variant.gate in (Activation.OWN, Activation.SIGMOID, Activation.HARD_SIGMOID)


def activations(cell: int, variant: Variant | None) -> list[Named]:
    """Of one direction: f, g, h of an LSTM, f, g of a GRU, f of an RNN.

    Raises:
        NotImplementedError: for a variant that no node computes.
    """
    variant = variant or Variant()
    if any(variant._replace(gate=0, state=0, peephole=False, coupled=False, reset_before=False)):
        raise checks.onnx_variant()
    shifted = variant.state == Activation.HARD_TANH
    if variant.gate == Activation.HARD_TANH or (shifted and (cell == Cell.LSTM or variant.reset_before)):
        raise checks.onnx_hard_tanh()
    if variant.coupled and not is_symmetric(variant):
        raise checks.onnx_coupled()
    gate = _ACTIVATIONS[variant.gate or Activation.SIGMOID]
    state = _ACTIVATIONS[variant.state or (Activation.RELU if cell == Cell.RNN_RELU else Activation.TANH)]
    return [gate, state, state] if cell == Cell.LSTM else [gate, state] if cell == Cell.GRU else [state]


def attributes(cell: int, variant: Variant | None, directions: int, hidden: int) -> dict[str, Any]:
    """A node's attributes, with what is not ONNX's default (an RNN's activation always).

    Raises:
        NotImplementedError: for a variant that no node computes.
    """
    named = activations(cell, variant) * directions
    made: dict[str, Any] = {"hidden_size": hidden}
    if cell == Cell.GRU:
        made["linear_before_reset"] = int(variant is None or not variant.reset_before)
    if directions == 2:
        made["direction"] = "bidirectional"
    if cell not in (Cell.LSTM, Cell.GRU) or named != activations(cell, None) * directions:
        made["activations"] = [each.name for each in named]
        for key, numbers in (("alpha", [each.alpha for each in named]), ("beta", [each.beta for each in named])):
            if any(number is not None for number in numbers):
                made[f"activation_{key}"] = [number for number in numbers if number is not None]
    return made


def read(names: Sequence[str], alphas: Sequence[float] | None, betas: Sequence[float] | None) -> list[Named]:
    """What a node lists, put together again."""
    alpha, beta = iter(alphas or ()), iter(betas or ())
    named = []
    for name in names:
        own = _DEFAULTS.get(name.lower())
        named.append(Named(name) if own is None else Named(name, next(alpha, own[0]), next(beta, own[1])))
    return named


def shifts(variant: Variant | None) -> bool:
    """Whether a node walks s with h = 2 s - 1 in place of h. A hard tanh of x is 2 s - 1 for the hard sigmoid
    s = min(max(x / 2 + 1 / 2, 0), 1), and what else happens to h in a GRU or an RNN is linear (but r h)."""
    return variant is not None and variant.state == Activation.HARD_TANH


def written(weights: Weights, variant: Variant | None) -> Weights:
    """The weights of one direction for a node: of s in place of h, and with a gate i where it is coupled.

    W_hh h + b = (2 W_hh) s + (b - W_hh 1). i = 1 - f = f(-x) for gates that are symmetric, so i has f's rows, negated.
    (So the node need not be told ``input_forget``, which runtimes read in two ways, or not at all.)
    """
    if shifts(variant):
        _, w_hh, b_ih, b_hh, *_ = weights
        zero = w_hh.new_zeros(len(w_hh))
        b_hh = (zero if b_hh is None else b_hh) - w_hh.sum(1)
        weights = weights._replace(w_hh=2 * w_hh, b_ih=zero if b_ih is None else b_ih, b_hh=b_hh)
    if variant is None or not variant.coupled:
        return weights

    def with_i(rows: Maybe, blocks: int) -> Any:
        return None if rows is None else torch.cat([-rows[: len(rows) // blocks], rows])

    return _each(with_i, weights, 3)


def coupled(weights: Weights) -> Weights:
    """The other way round, as ONNX Runtime computes ``input_forget=1``: f = 1 - i, where f's own rows are nothing."""

    def of_f(rows: Maybe, blocks: int) -> Any:
        if rows is None:
            return None
        block = len(rows) // blocks
        return torch.cat([-rows[:block], rows[2 * block :]])

    return _each(of_f, weights, 4)


def _each(function: Callable[[Maybe, int], Any], weights: Weights, gates: int) -> Weights:
    """Of all that has blocks of rows, one a gate (peepholes: one less)."""
    w_ih, w_hh, b_ih, b_hh = (function(rows, gates) for rows in weights[:4])
    return Weights(w_ih, w_hh, b_ih, b_hh, weights.w_hr, function(weights.w_ch, gates - 1))


def node_weights(own: Layer) -> tuple[Tensor, Tensor, Maybe]:
    """W [D, G*H, I], R [D, G*H, H] and B [D, 2*G*H] (None without biases) of a layer without projection."""

    def together(tensors: list[Tensor], order: Maybe) -> Tensor:
        rows = torch.cat(tensors).unflatten(0, (len(own), -1))
        return rows if order is None else rows.index_select(1, order)

    order = rows_of(own[0].w_hh, TORCH, ONNX)
    w = together([weights.w_ih for weights in own], order)
    r = together([weights.w_hh for weights in own], order)
    biases = [bias for weights in own for bias in (weights.b_ih, weights.b_hh) if bias is not None]
    if order is not None:
        order = torch.cat([order, order + len(order)])
    return w, r, together(biases, order) if biases else None


def peepholes(own: Layer) -> Maybe:
    """P [D, 3*H], of i, o, f; None if there are none."""
    both = [weights.w_ch for weights in own if weights.w_ch is not None]
    if not both:
        return None
    p_i, p_f, p_o = torch.stack(both).chunk(3, 1)
    return torch.cat([p_i, p_o, p_f], 1)
