"""``LSTMCell``, ``GRUCell`` and ``RNNCell``: the ``torch.nn`` modules of these names, one step at a time, for loops
that a program writes by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch.nn.modules.rnn import RNNCellBase

from . import checks
from .graph_nodes import as_node, is_proxy
from .network import GRU as _GRU
from .network import LSTM as _LSTM
from .network import RNN_RELU as _RNN_RELU
from .network import RNN_TANH as _RNN_TANH
from .step import step

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]

_RNN = {"tanh": _RNN_TANH, "relu": _RNN_RELU}


class _Cell(RNNCellBase):
    def __prepare_scriptable__(self) -> NoReturn:
        raise checks.scripted()


class _HiddenCell(_Cell):
    """A cell whose only state is h."""

    _name: str

    def _forward(self, cell: int, input: Any, hx: Any) -> Any:
        if is_proxy(input):
            return as_node(self, input, hx, {})
        rank = input.dim()
        if rank not in (1, 2):
            raise ValueError(f"{self._name}: Expected input to be 1D or 2D, got {rank}D instead")
        if hx is not None and hx.dim() not in (1, 2):
            raise ValueError(f"{self._name}: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
        if rank == 1:
            input, hx = input.unsqueeze(0), None if hx is None else hx.unsqueeze(0)
        if hx is None:
            hx = input.new_zeros((input.shape[0], self.hidden_size))
        h = step(cell, input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return h if rank == 2 else h.squeeze(0)

    if TYPE_CHECKING:

        def __call__(self, input: Tensor, hx: Tensor | None = None) -> Tensor: ...


class LSTMCell(_Cell):
    r"""A drop-in replacement of ``torch.nn.LSTMCell``; the formula is that of :class:`fused_rnn.LSTM`.

    Inputs: ``input`` [B, I] or [I]; ``hx`` = (h [B, H], c [B, H]), without B if input has none, or None for zeros.
    Outputs: (h, c) one step later.

    Parameters: ``weight_ih`` [4*H, I], ``weight_hh`` [4*H, H], ``bias_ih`` and ``bias_hh`` [4*H] or None.

    Raises ValueError for other ranks, RuntimeError for sizes or dtypes that do not fit.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(self, input: Any, hx: Any = None) -> Any:
        if is_proxy(input):
            return as_node(self, input, hx, {})
        rank = input.dim()
        if rank not in (1, 2):
            raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {rank}D instead")
        if hx is not None:
            for i, state in enumerate(hx):
                if state.dim() not in (1, 2):
                    raise ValueError(f"LSTMCell: Expected hx[{i}] to be 1D or 2D, got {state.dim()}D instead")
        if rank == 1:
            input = input.unsqueeze(0)
        if hx is None:
            zeros = input.new_zeros((input.shape[0], self.hidden_size))
            hx = (zeros, zeros)
        elif rank == 1:
            hx = tuple(state.unsqueeze(0) for state in hx)
        h, c = step(_LSTM, input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return (h, c) if rank == 2 else (h.squeeze(0), c.squeeze(0))

    if TYPE_CHECKING:

        def __call__(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]: ...


class GRUCell(_HiddenCell):
    r"""A drop-in replacement of ``torch.nn.GRUCell``; the formula is that of :class:`fused_rnn.GRU`.

    Inputs: ``input`` [B, I] or [I]; ``hx`` [B, H] or [H], or None for zeros. Output: h one step later.
    Parameters and errors as for :class:`LSTMCell`, with 3*H rows.
    """

    _name = "GRUCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def forward(self, input: Any, hx: Any = None) -> Any:
        return self._forward(_GRU, input, hx)


class RNNCell(_HiddenCell):
    r"""A drop-in replacement of ``torch.nn.RNNCell``; the formula is that of :class:`fused_rnn.RNN`.

    Inputs, output, parameters and errors as for :class:`GRUCell`, with H rows; ``nonlinearity`` is 'tanh' or 'relu',
    any other is a RuntimeError when called.
    """

    __constants__ = [*RNNCellBase.__constants__, "nonlinearity"]  # noqa: RUF012  (torch's own way)
    nonlinearity: str
    _name = "RNNCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Any, hx: Any = None) -> Any:
        if self.nonlinearity not in _RNN:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return self._forward(_RNN[self.nonlinearity], input, hx)
