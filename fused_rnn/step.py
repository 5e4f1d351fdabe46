"""One step of a cell: a sequence of one.

An Elman step is two products and an activation: there is nothing to fuse, and torch's own function costs less.
Whatever is unusual about a call of the others (sizes that do not fit, mixed dtypes, autocast, a device or dtype
without kernels) goes to torch's own function too, which computes it or refuses it in its own words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import _VF, Tensor

from .autograd import layer
from .network import GRU, LSTM, RNN_RELU, RNN_TANH, has_kernels
from .stack import distinct

__all__ = ["step"]

Maybe = Tensor | None
_TORCH: dict[int, Callable[..., Any]] = {
    LSTM: _VF.lstm_cell,
    GRU: _VF.gru_cell,
    RNN_TANH: _VF.rnn_tanh_cell,
    RNN_RELU: _VF.rnn_relu_cell,
}
_autocasts = torch._C._is_any_autocast_enabled
_is_compiling = torch.compiler.is_compiling
_SEQUENCES = (tuple, list)


def step(cell: int, input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Maybe, b_hh: Maybe) -> Any:
    """input [B, I], hx [B, H] (an LSTM's: h and c) -> the same states one step later."""
    if cell == LSTM and isinstance(hx, _SEQUENCES) and len(hx) == 2:
        h, c = hx
    elif cell == GRU:
        h, c = hx, None
    else:  # what torch refuses is here too
        return _TORCH[cell](input, hx, w_ih, w_hh, b_ih, b_hh)
    weights: Sequence[Tensor] = (w_ih, w_hh) if b_ih is None or b_hh is None else (w_ih, w_hh, b_ih, b_hh)
    if (b_ih is None) != (b_hh is None) or _autocasts() or not _is_regular(input, h, c, weights):
        return _TORCH[cell](input, hx, w_ih, w_hh, b_ih, b_hh)
    x, first_h, first_c = input.unsqueeze(0), h.unsqueeze(0), None if c is None else c.unsqueeze(0)
    if _is_compiling():
        x, first_h, first_c, *weights = distinct((x, first_h, first_c, *weights))
    _, hn, cn, _ = layer(x, first_h, first_c, weights, None, cell)
    return hn.squeeze(0) if cn is None else (hn.squeeze(0), cn.squeeze(0))


def _is_regular(input: Tensor, h: Tensor, c: Maybe, weights: Sequence[Tensor]) -> bool:
    w_ih, w_hh = weights[0], weights[1]
    state = (input.shape[0], w_hh.shape[1])
    return (
        input.dim() == 2
        and input.shape[1] == w_ih.shape[1]
        and h.shape == state
        and (c is None or (c.shape == state and c.dtype == input.dtype))
        and input.dtype == h.dtype == w_ih.dtype
        and has_kernels(input, h, c, weights)
    )
