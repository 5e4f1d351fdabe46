"""Rows with lengths of their own: a module of ours given them, and the same by torch, row after row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from episodes import BySteps
from torch import Tensor, nn

from fused_rnn import network

# How lengths are gone by: the rows' own steps as a packed sequence, or every row to the last step, masked.
WAYS = ["packed", "padded"]


@contextmanager
def going(way: str) -> Iterator[None]:
    with mock.patch.object(network, "readable", return_value=False) if way == "padded" else nullcontext():
        yield


class OfLengths(nn.Module):
    """A module of ours that is always given these options."""

    def __init__(self, module: nn.Module, way: str = "packed", **options: Any) -> None:
        super().__init__()
        self.module, self.way, self.options = module, way, options

    def forward(self, input: Any, hx: Any = None) -> Any:
        with going(self.way):
            return self.module(input, hx, **self.options)


class ByRows(nn.Module):
    """What that computes, from a module of torch's: each row as an unbatched sequence, cut to its length."""

    def __init__(self, module: nn.Module, lengths: Tensor, reset: Tensor | None = None, reset_to: str = "zero") -> None:
        super().__init__()
        self.module, self.lengths, self.reset, self.reset_to = module, lengths, reset, reset_to

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        net, rank = self.module, input.dim()
        x, reset = input, self.reset
        if rank == 2:
            x, reset = x.unsqueeze(1), None if reset is None else reset.unsqueeze(1)
        elif net.batch_first:
            x, reset = x.transpose(0, 1), None if reset is None else reset.transpose(0, 1)
        is_lstm = net.mode == "LSTM"
        states = self._states(x, hx, rank)
        ys, finals = [], []
        for b, given in enumerate(self.lengths.reshape(-1).tolist()):
            length = min(max(given, 0), len(x))
            own = tuple(s[:, b] for s in states)
            y = x.new_zeros(0, (net.proj_size or net.hidden_size) * (1 + net.bidirectional))
            if length:
                row = net if reset is None else BySteps(net, reset[:length, b], self.reset_to)
                y, final = row(x[:length, b], own if is_lstm else own[0])
                own = final if is_lstm else (final,)
            ys.append(torch.cat([y, y.new_zeros(len(x) - length, y.shape[1])]))
            finals.append(own)
        y = torch.stack(ys, 1)
        final = tuple(torch.stack(parts, 1) for parts in zip(*finals, strict=True))
        if rank == 2:
            y, final = y.squeeze(1), tuple(s.squeeze(1) for s in final)
        elif net.batch_first:
            y = y.transpose(0, 1)
        return y, final if is_lstm else final[0]

    def _states(self, x: Tensor, hx: Any, rank: int) -> tuple[Tensor, ...]:
        net = self.module
        if hx is None:
            sizes = [net.proj_size or net.hidden_size, *([net.hidden_size] if net.mode == "LSTM" else [])]
            return tuple(x.new_zeros(net.num_layers * (1 + net.bidirectional), x.shape[1], size) for size in sizes)
        states = tuple(hx) if net.mode == "LSTM" else (hx,)
        return tuple(s.unsqueeze(1) for s in states) if rank == 2 else states
