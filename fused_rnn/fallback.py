"""torch's own functions, for what has no kernels: other devices (CUDA where its kernels were not built), complex
dtypes, differentiable traces.

They are bound when the module is loaded: classes and functions that somebody puts in torch's place later are not seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import _VF, Tensor

from . import checks
from .reference import Cell

__all__ = ["layer", "run", "warn_once"]

_FUNCTIONS: dict[int, Callable[..., Any]] = {
    int(Cell.LSTM): _VF.lstm,
    int(Cell.GRU): _VF.gru,
    int(Cell.RNN_TANH): _VF.rnn_tanh,
    int(Cell.RNN_RELU): _VF.rnn_relu,
}


_warned: set[str] = set()


def warn_once(text: str) -> None:
    """That something runs without kernels, the first time it does."""
    if not torch.compiler.is_compiling() and text not in _warned:
        _warned.add(text)
        warnings.warn(f"fused_rnn: {text}", stacklevel=5)


def run(
    net: tuple[Any, ...],
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    batch_first: bool,
) -> tuple[Any, Any, Any]:
    """The same as ``functional._run``: y, hn, cn (or None)."""
    cell, batch, hidden, projection, layers, directions, dropout, training, *_ = net
    # Where its tensors are, torch itself asks for padded rows only.
    error = None if batch_sizes is None else checks.elsewhere(input, (h0, c0), weights)
    if error is not None:
        raise error
    if h0 is None:
        h0 = input.new_zeros((layers * directions, batch, projection or hidden))
        if cell == Cell.LSTM:
            c0 = input.new_zeros((layers * directions, batch, hidden))
    biased = len(weights) // (layers * directions) >= 4
    options = (weights, biased, layers, dropout, training, directions == 2)
    states = h0 if c0 is None else (h0, c0)
    if batch_sizes is None:
        y, hn, *cn = _FUNCTIONS[cell](input, states, *options, batch_first)
    else:
        y, hn, *cn = _FUNCTIONS[cell](input, batch_sizes, states, *options)
    return y, hn, cn[0] if cn else None


def layer(
    x: Tensor, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor], batch_sizes: Tensor | None, cell: int, *_: Any
) -> tuple[Tensor, Tensor, Tensor | None, None]:
    """``autograd.layer``, without reset, variant and cell states: for stacks that torch cannot run at once."""
    directions = int(h0.shape[0])  # not a number in a trace
    net = (cell, h0.shape[1], h0.shape[2], 0, 1, directions, 0.0, False)
    return *run(net, x, h0, c0, weights, batch_sizes, False), None
