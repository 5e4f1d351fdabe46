"""A module of torch's and ours with the same parameters, run on the same input, and the rule by which they agree."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from devices import native_loops, on_cpu
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

import fused_rnn

KINDS = ["LSTM", "GRU", "RNN"]
CELLS = ["LSTMCell", "GRUCell", "RNNCell"]

# How far a low-precision result may be off where torch's own happens to be (nearly) exact: in units of the last place
# of the largest value among the outputs, or among the gradients (small ones are differences of larger ones). It is for
# networks of one to three units, where torch often rounds only once or twice in all.
FLOOR = {torch.float32: 8, torch.bfloat16: 1, torch.float16: 1}


def pair(kind: str, *args: Any, seed: int = 0, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """(torch's, ours)."""
    torch.manual_seed(seed)
    theirs = getattr(nn, kind)(*args, **kwargs)
    ours = getattr(fused_rnn, kind)(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def flat(result: Any) -> list[torch.Tensor]:
    """The tensors in what a module returned."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data]
    return [tensor for part in result for tensor in flat(part)]


def cast(value: Any, to: torch.dtype | torch.device) -> Any:
    """Tensors, in whatever they are packed, in another dtype or on another device; leaves that keep their
    ``requires_grad``, and one tensor at two places stays one."""
    return _mapped(value, lambda tensor: tensor.to(to))


def _mapped(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    memo: dict[torch.Tensor, torch.Tensor] = {}

    def convert(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, torch.Tensor):
            if value not in memo:
                memo[value] = function(value.detach()).requires_grad_(value.requires_grad)
            return memo[value]
        if isinstance(value, PackedSequence):
            data = convert(value.data)
            return PackedSequence(data, value.batch_sizes, *(i if i is None else i.to(data.device) for i in value[2:]))
        return type(value)(convert(part) for part in value)

    return convert(value)


def leaves(*values: Any) -> list[torch.Tensor]:
    every = [tensor for value in values if value is not None for tensor in flat(value)]
    return [tensor for tensor in dict.fromkeys(every) if tensor.requires_grad]


def run(module: nn.Module, input: Any, hx: Any, seed: int | None = None) -> list[torch.Tensor]:
    """Outputs, then the gradients of a fixed weighting of them by every input and parameter that requires one."""
    if seed is not None:
        torch.manual_seed(seed)
    outputs = flat(module(input) if hx is None else module(input, hx))
    wanted = leaves(input, hx, list(module.parameters()))
    if not wanted:
        return outputs
    loss = outputs[0].new_zeros(())
    for i, output in enumerate(outputs):
        # on its device: the default one is the main thread's alone
        weighting = torch.linspace(-1, 1 + i, max(output.numel(), 1), dtype=torch.float64, device=output.device)
        loss = loss + (output * weighting[: output.numel()].view(output.shape).to(output.dtype)).sum()
    return [*outputs, *torch.autograd.grad(loss, wanted, allow_unused=True)]


def distance(result: torch.Tensor, truth: torch.Tensor) -> float:
    """The largest difference."""
    return (result.double() - truth.double()).abs().max().item() if truth.numel() else 0.0


def _moves(exact: nn.Module, input: Any, hx: Any, seed: int | None, eps: float, truth: list[Any]) -> list[float]:
    """How far each tensor of ``truth`` goes where all that is given to a module of f64 does, by a rounding to ``eps``
    up or down: the larger of two trials."""
    generator = torch.Generator().manual_seed(0)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        with torch.device("cpu"):
            signs = 2 * torch.randint(2, tensor.shape, generator=generator) - 1
        return tensor * (1 + eps * signs.to(tensor.device))

    farthest = [0.0] * len(truth)
    for _ in range(2):
        other = copy.deepcopy(exact)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.copy_(moved(parameter))
        results = run(other, _mapped(input, moved), _mapped(hx, moved), seed)
        for i, (result, tensor) in enumerate(zip(results, truth, strict=True)):
            farthest[i] = max(farthest[i], 0.0 if tensor is None else distance(result, tensor))
    return farthest


def largest_of(tensors: list[torch.Tensor]) -> float:
    return max((t.abs().max().item() for t in tensors if t is not None and t.numel()), default=0.0)


class _MasksOf(TorchDispatchMode):
    """Dropout in f64 by the masks of another dtype: a GPU's depend on how many elements a thread takes at once."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is not torch.ops.aten.native_dropout.default:
            return func(*args, **(kwargs or {}))
        input, p, training = args
        mask = func(input.to(self.dtype), p, training)[1]
        return input * mask / (1 - p), mask


def agree(
    theirs: nn.Module, ours: nn.Module, input: Any, hx: Any = None, seed: int | None = None, roundings: int = 0
) -> None:
    """f64: within 1e-10 of the largest value. Others: against f64, at most twice torch's own error.

    ``roundings``: and as much as f64 itself differs where all that is given does, by so many roundings, for networks
    that make much of one; there it is luck by which of two ways more is lost.
    """
    got = run(ours, input, hx, seed)
    dtype = got[0].dtype
    with native_loops():
        truth = expected = run(theirs, input, hx, seed)
        if dtype != torch.float64:
            exact = copy.deepcopy(theirs).double()
            with nullcontext() if on_cpu() else _MasksOf(dtype):
                truth = run(exact, cast(input, torch.float64), cast(hx, torch.float64), seed)
    assert len(expected) == len(got)
    count, moves = len(got) - len(leaves(input, hx, list(ours.parameters()))), []
    largest = [largest_of(truth[:count]), largest_of(truth[count:])]
    for i, (e, g, t) in enumerate(zip(expected, got, truth, strict=True)):
        if e is None:
            assert g is None, f"tensor {i}: torch has no gradient"
            continue
        assert g.shape == e.shape, f"tensor {i}"
        assert g.dtype == e.dtype, f"tensor {i}"
        if dtype == torch.float64:
            bound = 1e-10 * largest_of([t])
        else:
            eps = torch.finfo(dtype).eps
            bound = 2 * distance(e, t) + FLOOR[dtype] * eps * largest[i >= count]
            if roundings and distance(g, t) > bound:
                moves = moves or _moves(exact, *(cast(value, torch.float64) for value in (input, hx)), seed, eps, truth)
                bound += roundings * moves[i]
        assert distance(g, t) <= bound, f"tensor {i}: {distance(g, t)} from the truth, torch {distance(e, t)}"
