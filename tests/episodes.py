"""Episodes that begin inside of sequences: a module of ours given a mask, and the same by torch's single steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

_STEPS = {
    "LSTM": torch.lstm_cell,
    "GRU": torch.gru_cell,
    "RNN_TANH": torch.rnn_tanh_cell,
    "RNN_RELU": torch.rnn_relu_cell,
}


def random_mask(input: Any, share: float = 0.3) -> Any:
    """A ``reset`` for this input."""
    if isinstance(input, PackedSequence):
        return input._replace(data=torch.rand(input.data.shape[:1]) < share)
    return torch.rand(input.shape[:-1]) < share


class Masked(nn.Module):
    """A module of ours that is always given this mask."""

    def __init__(self, module: nn.Module, mask: Any, reset_to: str) -> None:
        super().__init__()
        self.module, self.mask, self.reset_to = module, mask, reset_to

    def forward(self, input: Any, hx: Any = None) -> Any:
        return self.module(input, hx, reset=self.mask, reset_to=self.reset_to)


class BySteps(Masked):
    """What that computes, from a module of torch's: each row alone, a call of one of torch's cells a step."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        net, mask = self.module, self.mask
        lengths = None
        if isinstance(input, PackedSequence):
            mask = pad_packed_sequence(mask)[0]
            x, lengths = pad_packed_sequence(input)
        elif input.dim() == 2:
            x, mask = input.unsqueeze(1), mask.unsqueeze(1)
        elif net.batch_first:
            x, mask = input.transpose(0, 1), mask.transpose(0, 1)
        else:
            x = input
        if not x.shape[1]:
            return net(input, hx)
        states = self._states(x, hx, input)
        rows = range(x.shape[1])
        steps = [x.shape[0]] * len(rows) if lengths is None else lengths.tolist()
        done = [self._row(x[: steps[b], b], [s[:, b] for s in states], mask[: steps[b], b]) for b in rows]
        y = nn.utils.rnn.pad_sequence([row[0] for row in done])
        finals = [torch.stack(parts, 1) for parts in zip(*(row[1] for row in done), strict=True)]
        if lengths is not None:
            order = slice(None) if input.sorted_indices is None else input.sorted_indices.cpu()
            y = PackedSequence(pack_padded_sequence(y[:, order], lengths[order]).data, *input[1:])
        elif input.dim() == 2:
            y, finals = y.squeeze(1), [s.squeeze(1) for s in finals]
        elif net.batch_first:
            y = y.transpose(0, 1)
        return y, tuple(finals) if net.mode == "LSTM" else finals[0]

    def _states(self, x: Tensor, hx: Any, input: Any) -> list[Tensor]:
        """[L*D, B, H] each."""
        net = self.module
        if hx is None:
            zeros = x.new_zeros(net.num_layers * (1 + net.bidirectional), x.shape[1], net.hidden_size)
            return [zeros, zeros] if net.mode == "LSTM" else [zeros]
        states = hx if net.mode == "LSTM" else [hx]
        return [s.unsqueeze(1) if isinstance(input, Tensor) and input.dim() == 2 else s for s in states]

    def _row(self, x: Tensor, states: list[Tensor], mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x [T, I], states [L*D, H], mask [T] -> y [T, D*H] and the final states [L*D, H]."""
        net, finals = self.module, []
        for layer in range(net.num_layers):
            sides = []
            for d in range(1 + net.bidirectional):
                first = [
                    s[layer * (1 + net.bidirectional) + d : layer * (1 + net.bidirectional) + d + 1] for s in states
                ]
                y, final = self._walk(x, first, mask, f"l{layer}" + "_reverse" * d)
                sides.append(y)
                finals.append(final)
            x = torch.cat(sides, 1)
        return x, [torch.cat(parts) for parts in zip(*finals, strict=True)]

    def _walk(self, x: Tensor, first: list[Tensor], mask: Tensor, name: str) -> tuple[Tensor, list[Tensor]]:
        net, reverse = self.module, name.endswith("_reverse")
        weights = [getattr(net, f"{part}_{name}") for part in ("weight_ih", "weight_hh")]
        weights += [getattr(net, f"{part}_{name}") if net.bias else None for part in ("bias_ih", "bias_hh")]
        new = first if self.reset_to == "initial" else [torch.zeros_like(s) for s in first]

        def select(t: int, state: list[Tensor]) -> list[Tensor]:
            return [torch.where(mask[t], n, s) for n, s in zip(new, state, strict=True)]

        state, outputs = first, []
        for t in range(len(x))[:: -1 if reverse else 1]:
            if not reverse:
                state = select(t, state)
            result = _STEPS[net.mode](x[t : t + 1], state if net.mode == "LSTM" else state[0], *weights)
            final = list(result) if net.mode == "LSTM" else [result]
            outputs.append(final[0])
            state = select(t, final) if reverse else final
        return torch.cat(outputs[:: -1 if reverse else 1]), final
