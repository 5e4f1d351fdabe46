"""Connections between the layers of a stack (docs/connections.md): what goes around a layer, and the weights it takes.

x_k is what layer k reads and y_k what it gives, dropout done. Without a connection x_{k+1} = y_k.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.rnn import RNNBase

from . import checks

__all__ = ["HIGHWAY_BIAS", "add_parameters", "check", "extra_weights", "highway_biases", "join"]

KINDS = ("residual", "dense", "highway")
HIGHWAY_BIAS = -1.0  # so that the layer below is carried at first (Srivastava et al. 2015, section 2.2)


def check(connection: str | None) -> None:
    if connection is not None and connection not in KINDS:
        raise checks.connection(KINDS, connection)


def extra_weights(connection: str | None, layers: int) -> int:
    """How many tensors there are after those of all layers: w_hw [D*R, D*R] and b_hw [D*R] of each but the first."""
    return 2 * (layers - 1) if connection == "highway" else 0


def join(connection: str, layer: int, layers: int, x: Tensor, y: Tensor, own: Sequence[Tensor]) -> Tensor:
    """What the next layer reads, or the last one's output. x [.., I of this layer], y [.., D*R] -> [.., I of the next].

    ``own``: the weights of all highways.
    Residual (He et al. 2016): x + y. Highway (Srivastava et al. 2015): t y + (1 - t) x, t = sigmoid(W_hw x + b_hw).
    Both from the second layer on, as the first one's x is of another size. Dense (Huang et al. 2017): (x, y) side by
    side, all that was read and given below; of the last layer y alone.
    """
    if connection == "dense":
        return y if layer == layers - 1 else torch.cat([x, y], -1)
    if layer == 0:
        return y
    if connection == "residual":
        return x + y
    w_hw, b_hw = own[2 * layer - 2 : 2 * layer]
    return torch.lerp(x, y, torch.sigmoid(F.linear(x, w_hw, b_hw)))


def add_parameters(module: RNNBase, connection: str) -> None:
    """Those that a connection adds, and W_ih of the sizes it makes; not drawn yet."""
    if module.num_layers == 1:
        text = "a connection joins layers, so it expects num_layers greater than 1, but got"
        warnings.warn(f"{text} connection={connection!r} and num_layers=1", stacklevel=4)
    width = (1 + module.bidirectional) * (module.proj_size or module.hidden_size)  # D*R
    names: list[str] = []
    like: Tensor = module.weight_ih_l0  # type: ignore[assignment]
    for k in range(1, module.num_layers):
        if connection == "dense":
            for suffix in (f"l{k}", f"l{k}_reverse")[: 1 + module.bidirectional]:
                name = f"weight_ih_{suffix}"
                setattr(module, name, nn.Parameter(like.new_empty(len(like), module.input_size + k * width)))
        elif connection == "highway":
            for name, shape in ((f"weight_hw_l{k}", (width, width)), (f"bias_hw_l{k}", (width,))):
                module.register_parameter(name, nn.Parameter(like.new_empty(shape)))
                names.append(name)
    if names:
        module._all_weights.append(names)
        module._flat_weights_names.extend(names)
    module._init_flat_weights()


def highway_biases(module: RNNBase) -> Iterable[Tensor]:
    return (getattr(module, f"bias_hw_l{k}") for k in range(1, module.num_layers))
