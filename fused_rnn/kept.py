"""What a forward keeps for its backward, so that nobody changes it in place unseen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import ops

__all__ = ["cells_of", "kept_output", "lazy_clone", "shown_and_kept", "states_kept"]

Maybe = Tensor | None
lazy_clone = getattr(torch, "_lazy_clone", torch.clone)  # not public: where it is missing, a copy at once


def cells_of(saved: Tensor, y: Tensor, hidden: int) -> Tensor:
    """c of every step of what a forward kept: saved [D, N, S*H], H = ``hidden`` -> [T, B, D*H] or [N, D*H], a copy."""
    states = saved.narrow(2, saved.shape[2] - hidden, hidden)
    return torch.cat(states.unflatten(1, y.shape[:-1]).unbind(), -1)


def kept_output(y: Tensor, c0: Maybe) -> Tensor:
    """y for the backward. It is another one where the one that is returned may be changed in place, as torch's own
    allow it: GRU and RNN on the CPU. That becomes a copy at the first such change, if any."""
    return lazy_clone(y) if c0 is None and y.is_cpu else y


# In a graph torch sees no change in place of what a Function keeps, nor one, afterwards, of a view that the graph
# returned. There states and outputs are kept that nobody else has. Copies that compilers may leave out, or make only in
# the backward, are none: these are by an op of ours, and it is the forward that needs them.


def states_kept(h0: Tensor, c0: Maybe) -> tuple[Tensor, Maybe]:
    """In a graph: h0 and c0 for the forward and its backward. They may be buffers, to which it writes the next ones."""
    h0, *others = ops.own_copies([h0] if c0 is None else [h0, c0])
    return h0, others[0] if others else None


def shown_and_kept(y: Tensor) -> Sequence[Tensor]:
    """In a graph: y for the caller, y for the backward."""
    return *ops.own_copies([y]), y
