"""A layer's weights taken apart and put together, and the order of gates here and elsewhere.

W_ih, W_hh and the biases are blocks of H rows, one block a gate. A gate's letter is torch's: i, f, g, o of the LSTM (g
is the candidate, elsewhere c), r, z, n of the GRU (n is the candidate, elsewhere h), h of the RNN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .reference import Weights

__all__ = ["KERAS", "ONNX", "TORCH", "gates_of", "layers_of", "renew", "reordered", "rows_of", "state_dict"]

Layer = Sequence[Weights]  # one direction or two
Order = dict[int, str]  # number of gates, which tells the cell -> their letters, the first block's first
TORCH: Order = {4: "ifgo", 3: "rzn", 1: "h"}
KERAS: Order = {4: "ifgo", 3: "zrn", 1: "h"}
ONNX: Order = {4: "iofg", 3: "zrn", 1: "h"}

_DIRECTIONS = ("", "_reverse")
_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_ch")  # as in Weights


def gates_of(w_hh: Tensor) -> int:
    """G by the shape [G*H, H]; 0 if it is no such shape."""
    rows, hidden = w_hh.shape if w_hh.dim() == 2 else (0, 0)
    return int(rows // hidden) if hidden and rows in (hidden, 3 * hidden, 4 * hidden) else 0


def rows_of(w_hh: Tensor, before: Order, after: Order) -> Tensor | None:
    """Which rows make the other order: [G*H], for ``index_select``; None where both are the same."""
    number, hidden = gates_of(w_hh), w_hh.shape[1]
    if before[number] == after[number]:
        return None
    first = (before[number].index(letter) * hidden for letter in after[number])
    return torch.cat([torch.arange(row, row + hidden, device=w_hh.device) for row in first])


def reordered(weights: Weights, before: Order, after: Order) -> Weights:
    """Weights without projection, their gates brought from one order into another; peepholes stay."""
    order = rows_of(weights.w_hh, before, after)
    if order is None:
        return weights
    b_ih, b_hh = (None if bias is None else bias[order] for bias in (weights.b_ih, weights.b_hh))
    return weights._replace(w_ih=weights.w_ih[order], w_hh=weights.w_hh[order], b_ih=b_ih, b_hh=b_hh)


def renew(module: nn.Module) -> None:
    """For who reads a module's weights without calling it: those that a hook makes of others before each forward
    (pruning, the old weight norm and spectral norm) are only then as new as the others."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm):  # not by calling it, which in training moves on what it iterates
            setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
        elif isinstance(hook, BasePruningMethod | WeightNorm):
            hook(module, ())


def layers_of(module: RNNBase) -> list[Layer]:
    """A module's parameters as they are now, layer by layer."""
    renew(module)

    def weights(suffix: str) -> Weights:
        own: list[Any] = [getattr(module, name + suffix, None) for name in _NAMES]
        return Weights(*own)

    directions = _DIRECTIONS[: 1 + module.bidirectional]
    return [[weights(f"_l{k}{direction}") for direction in directions] for k in range(module.num_layers)]


def state_dict(stack: Sequence[Layer]) -> dict[str, Tensor]:
    """Copies of a stack of layers, by the names that ``torch.nn`` gives them.

    Raises ValueError where the layers could not be those of one module.
    """
    if not stack:
        raise ValueError("expected at least one layer")
    first = stack[0][0]
    hidden = first.w_hh.shape[1]
    state: dict[str, Tensor] = {}
    for k, layer in enumerate(stack):
        features = len(layer) * hidden if k else first.w_ih.shape[1]
        for direction, weights in zip(_DIRECTIONS, layer, strict=False):
            same = weights.w_hh.shape == first.w_hh.shape and all(
                (one is None) == (other is None) for one, other in zip(weights, first, strict=True)
            )
            if not same or len(layer) != len(stack[0]) or weights.w_ih.shape[1] != features:
                raise ValueError(
                    f"layer {k}{direction} must be of the first one's kind, of {features} features and {hidden} units, "
                    f"got {weights.w_ih.shape[1]} and {weights.w_hh.shape[1]}"
                )
            for name, value in zip(_NAMES, weights, strict=False):
                if value is not None:
                    state[f"{name}_l{k}{direction}"] = value.detach().clone(memory_format=torch.contiguous_format)
    return state
