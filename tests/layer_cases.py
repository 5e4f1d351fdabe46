"""What the tests of ``autograd.layer`` share: a layer as a function of its tensors, by us and by the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from loop_cases import Case, make
from torch import Tensor

from fused_rnn import autograd, reference
from fused_rnn.reference import Cell

KINDS = {
    "lstm": {"cell": Cell.LSTM},
    "lstm-proj": {"cell": Cell.LSTM, "P": 2},
    "gru": {"cell": Cell.GRU},
    "tanh": {"cell": Cell.RNN_TANH},
    "relu": {"cell": Cell.RNN_RELU},
}


@dataclass
class Layer:
    """``ours`` and ``theirs`` take ``args`` (x, h0, c0 if any, *weights) and give (y, hn, cn and every c if any)."""

    case: Case
    args: tuple[Tensor, ...]
    batch_sizes: Tensor | None
    recompute: bool = False
    reset: Tensor | None = None
    seed: Tensor | None = None

    @property
    def states(self) -> int:
        """How many of ``args`` are no weights."""
        return 3 if self.case.cell.is_lstm else 2

    def _bound(self, layer: Callable) -> Callable[..., tuple[Tensor, ...]]:
        def function(*args):
            (x, h0), c0 = args[:2], args[2] if self.case.cell.is_lstm else None
            options = {"reset": self.reset, "reset_initial": self.case.reset == "initial"}
            options |= {"variant": self.case.variant, "seed": self.seed, "cells": self.case.cells}
            outputs = layer(x, h0, c0, args[self.states :], self.batch_sizes, self.case.cell, **options)
            return tuple(output for output in outputs if output is not None)

        return function

    @property
    def ours(self):
        return self._bound(partial(autograd.layer, recompute=self.recompute))

    @property
    def theirs(self):
        return self._bound(reference.layer)

    def leaves(self) -> list[Tensor]:
        return [arg.clone().requires_grad_() for arg in self.args]


def make_layer(kind: str, recompute: bool = False, **options) -> Layer:
    """Small odd sizes, all different (Dynamo takes equal ones for the same); f64."""
    case = Case(**{"T": 4, "B": 3, "I": 2, "H": 5, **KINDS[kind], **options})
    problem = make(case)
    states = (problem.x, problem.h0) if problem.c0 is None else (problem.x, problem.h0, problem.c0)
    return Layer(case, (*states, *problem.weights), problem.batch_sizes, recompute, problem.reset, problem.seed)


def scalar(function: Callable) -> Callable[..., Tensor]:
    """A number made of all outputs of ``function``, none of whose derivatives vanish."""

    def of_all(*args):
        return sum((i + 1) * output.sin().sum() for i, output in enumerate(function(*args)))

    return of_all


def assert_close(got, want, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
