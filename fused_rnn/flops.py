"""The ops' floating point operations, told to torch's ``FlopCounterMode``: as there two for each multiply-add of a
matrix product, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch.utils.flop_counter import flop_registry, register_flop_formula

from . import ops
from .reference import Cell, Variant, gates_of, kept_gates

__all__: list[str] = []

Shape = Sequence[int]
_W_IH, _W_HH = 0, 1  # among a direction's weights


def _formula(*names: str) -> Callable:
    """Once a process, should the package be imported anew."""
    return register_flop_formula([op for name in names if (op := ops.packet(name)) not in flop_registry])


def _rows(x: Shape) -> int:
    """N, of x [T, B, I] or [N, I]."""
    return prod(x[:-1])


def _products(rows: int, weights: Sequence[Shape]) -> int:
    """Of all matrices among the weights with as many vectors."""
    return sum(2 * rows * prod(weight) for weight in weights if len(weight) == 2)


@_formula("layer_forward", "exported_layer", "stack_forward")
def _forward(x: Shape, h0: Shape, c0: Shape | None, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    return _products(_rows(x), weights)


def _through_time(x: Shape, h0: Shape, weights: Sequence[Shape], whole: bool) -> int:
    """Gradients of states: through W_hh, of all steps or but for the first one, and through projections."""
    rows, each = _rows(x), len(weights) // h0[0]
    projections = [weight for i, weight in enumerate(weights) if i % each > _W_HH]
    return _products(rows if whole else max(0, rows - h0[1]), weights[_W_HH::each]) + _products(rows, projections)


@_formula("layer_backward")
def _backward(*args: Any, **__: Any) -> int:
    x, h0, _, weights, _, saved, _, cell, needs = args[3:12]  # after dy, dhn, dcn
    rows, each = _rows(x), len(weights) // h0[0]
    flops = _through_time(x, h0, weights, whole=bool(needs & 0b110))
    flops += _products(rows, [weight for i, weight in enumerate(weights) if needs >> 3 + i & 1])
    if needs & 1:
        flops += _products(rows, weights[_W_IH::each])
    variant = Variant.of(args[15] if len(args) > 15 else None)
    hidden = weights[0][0] // gates_of(cell, variant)
    if kept_gates(cell, variant) and saved[-1] <= hidden * Cell(cell).is_lstm:  # states alone: gates are made anew
        flops += _products(rows, weights)
    return flops


@_formula("layer_backward_gates")
def _backward_gates(*args: Any, **__: Any) -> int:
    x, h0, _, weights = args[3:7]
    return _through_time(x, h0, weights, whole=True)
