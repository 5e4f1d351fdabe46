"""Products of Jacobians over time, d h_T / d h_t, by vector products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..kinds import Variant
from ..modules import GRU, LSTM, RNN
from ..stack import by_reference

__all__ = ["jacobian_norms"]

States = tuple[Tensor, ...]  # h, or h and c: [L, K, R] and [L, K, H]


def jacobian_norms(
    module: LSTM | GRU | RNN,
    x: Tensor,
    steps: Sequence[int],
    hx: Any = None,
    of: str = "h",
    iterations: int = 20,
    generator: torch.Generator | None = None,
) -> Tensor:
    """An estimate of the largest singular value of d h_T / d h_t, for each t in ``steps`` at once.

    h_t is the state that step t leaves, of all layers together; T is the last step. Power iteration on J^T J: each
    iteration is one vector-Jacobian product, by the fused backward, and one Jacobian-vector product, in forward mode by
    the reference, step by step. All t go side by side as rows of one batch: the reset of row k at step t+1 puts in its
    own initial state, which is where the Jacobian begins. The estimate is from below, and grows with ``iterations``.

    Args:
        module: one direction, any number of layers; taken in eval mode.
        x: one sequence [T, I], in the module's dtype.
        steps: numbers from 0 to T-2.
        hx: the state before it, unbatched (h0 [L, R], or (h0, c0 [L, H])), or None for zeros.
        of: "h", with c_t held where it is, or "state", of an LSTM's (h, c) as one vector.

    Returns:
        [len(steps)], of x's dtype.

    Raises:
        TypeError: for something else than an LSTM, GRU or RNN of this package.
        ValueError: for a bidirectional module, steps out of range, another ``of``, an x that is not [T, I].
        RuntimeError: inside of ``gradient_flow(module)``.
    """
    if not isinstance(module, LSTM | GRU | RNN):
        raise TypeError(f"jacobian_norms takes fused_rnn.LSTM, GRU and RNN (convert makes them), got {type(module)}")
    if module.bidirectional:
        raise ValueError("jacobian_norms is of one direction, got a bidirectional module")
    if of not in ("h", "state"):
        raise ValueError(f"of must be 'h' or 'state', got {of!r}")
    if x.dim() != 2:
        raise ValueError(f"x must be one sequence [T, I], got {x.dim()} dimensions")
    last = x.shape[0] - 1
    if not steps or not all(0 <= t < last for t in steps):
        raise ValueError(f"steps must be from 0 to {last - 1}, got {list(steps)}")
    if module.recorder is not None:
        raise RuntimeError("gradient_flow looks at this module: leave it before")
    training = {part: part.training for part in module.modules()}  # parametrizations have modes of their own
    module.eval()
    try:
        return _norms(module, x, steps, hx, of == "state", iterations, generator)
    finally:
        for part, mode in training.items():
            part.training = mode


def _by_reference(one: Any, kernels: bool) -> Any:
    """In the place of a recorder: each layer by the reference, whose forward mode is torch's own. (A fused layer's is
    the vjp of a vjp, which nests and takes longer.)"""
    return by_reference


def _unclipped(one: Any, kernels: bool) -> Any:
    """Likewise: each layer as it is, without the clips of its backward, which are none of d h_T / d h_t."""

    def layer(*inputs: Any) -> Any:
        variant: Variant | None = inputs[9]
        kept = None if variant is None else variant.without("clip_value", "clip_norm")
        return one(*inputs[:9], kept, *inputs[10:])

    return layer


def _norms(
    module: LSTM | GRU | RNN,
    x: Tensor,
    steps: Sequence[int],
    hx: Any,
    whole: bool,
    iterations: int,
    generator: torch.Generator | None,
) -> Tensor:
    lstm = isinstance(module, LSTM)
    with torch.no_grad():
        reached = [_states(module(x[: t + 1], hx)[1]) for t in steps]  # of [L, R]
    states = tuple(torch.stack(parts, 1) for parts in zip(*reached, strict=True))  # [L, K, R]
    begun = torch.tensor(steps, device=x.device) + 1
    begins = torch.arange(x.shape[0], device=x.device).unsqueeze(1) == begun  # [T, K]
    rows = x.detach().unsqueeze(1).expand(-1, len(steps), -1)
    if module.batch_first:
        rows, begins = rows.transpose(0, 1), begins.T
    moved = len(states) if whole else 1

    def run(*some: Tensor) -> States:
        state: Any = (*some, *states[moved:])
        _, end = module(rows, state if lstm else state[0], reset=begins, reset_to="initial")
        return _states(end)[:moved]

    vectors = tuple(torch.randn(s.shape, dtype=s.dtype, device=s.device, generator=generator) for s in states[:moved])
    norms = x.new_zeros(len(steps))
    for _ in range(iterations):
        vectors = _over(vectors, _lengths(vectors))
        with _standing(module, _by_reference):
            pushed = torch.func.jvp(run, states[:moved], vectors)[1]
        norms = _lengths(pushed)
        leaves = tuple(s.detach().requires_grad_() for s in states[:moved])
        with torch.enable_grad(), _standing(module, _unclipped):
            vectors = torch.autograd.grad(run(*leaves), leaves, _over(pushed, norms))
    return norms.detach()


@contextmanager
def _standing(module: LSTM | GRU | RNN, what: Any) -> Iterator[None]:
    module.recorder = what
    try:
        yield
    finally:
        del module.recorder


def _states(state: Any) -> States:
    return tuple(state) if isinstance(state, tuple) else (state,)


def _lengths(vectors: States) -> Tensor:
    """Of each row's vector: [K]."""
    return torch.stack([v.square().sum((0, 2)) for v in vectors]).sum(0).sqrt()


def _over(vectors: States, lengths: Tensor) -> States:
    """Divided by these; what has no length stays."""
    lengths = torch.where(lengths > 0, lengths, 1).view(1, -1, 1)
    return tuple((v / lengths).detach() for v in vectors)
