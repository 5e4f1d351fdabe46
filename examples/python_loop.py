"""The Python loop over time that ``reset=`` replaces: how recurrent policies are trained where episodes end inside of
rollouts. Outputs and gradients of the one call and of the loop must be the same; the time of both is told.

    python -m examples.python_loop [--cells LSTM GRU] [--rows 2 8 16] [--hidden 64 128] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fused_rnn
from examples.common import write

State = Any  # tensors [1, B, H]: (h, c) of an LSTM, h of a GRU or RNN


def each(function: Callable[[Tensor], Tensor], state: State) -> State:
    return tuple(map(function, state)) if isinstance(state, tuple) else function(state)


class Loop(nn.Module):
    """At each step the state times (1 - reset), then a call of ``nn.LSTM``, as in the recurrent PPO of CleanRL and
    SB3-contrib, or of ``nn.LSTMCell``, which is faster. It has a copy of the weights."""

    def __init__(self, rnn: nn.RNNBase, name: str) -> None:
        super().__init__()
        self.step: nn.Module = getattr(nn, name)(rnn.input_size, rnn.hidden_size, dtype=rnn.weight_hh_l0.dtype)
        for mine, its in zip(self.step.parameters(), rnn.parameters(), strict=True):
            mine.data.copy_(its)
        self.is_cell = name.endswith("Cell")

    def forward(self, x: Tensor, state: State, *, reset: Tensor) -> tuple[Tensor, State]:
        keep = 1 - reset.to(x.dtype)[..., None]  # [T, B, 1]
        outputs = []
        if self.is_cell:  # [B, H] are its states
            state = each(lambda s: s[0], state)
        for x_t, keep_t in zip(x, keep, strict=True):
            state = each(keep_t.mul, state)
            if self.is_cell:
                state = self.step(x_t, state)
                outputs.append(state[0] if isinstance(state, tuple) else state)
            else:
                y, state = self.step(x_t[None], state)
                outputs.append(y[0])
        return torch.stack(outputs), each(lambda s: s.view(1, *s.shape[-2:]), state)


def forms(rnn: nn.RNNBase) -> dict[str, nn.Module]:
    name = type(rnn).__name__
    return {f"fused_rnn.{name}": rnn, **{f"nn.{n} a step": Loop(rnn, n) for n in (name, name + "Cell")}}


def compare(forms: Iterable[nn.Module], x: Tensor, state: State, **options: Tensor) -> float:
    """The largest relative difference of the first form's outputs, last states and all gradients from those of the
    others, computed in float64."""
    results = []
    for form in forms:
        form = copy.deepcopy(form).double()
        leaves = [x, *state] if isinstance(state, tuple) else [x, state]
        leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
        y, last = form(leaves[0], tuple(leaves[1:]) if isinstance(state, tuple) else leaves[1], **options)
        outputs = [y, *last] if isinstance(last, tuple) else [y, last]
        loss = torch.stack([output.sin().sum() for output in outputs]).sum()
        results.append([*outputs, *torch.autograd.grad(loss, [*leaves, *form.parameters()])])
    pairs = [(a.detach(), b.detach()) for loop in results[1:] for a, b in zip(results[0], loop, strict=True)]
    return max(float((a - b).norm() / a.norm().clamp(min=1e-30)) for a, b in pairs)


def measure(calls: dict[str, Callable[[], None]], rounds: int, turn: int) -> dict[str, float]:
    """Milliseconds, medians. The calls take turns in this process, each ``turn`` times."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(turn):
                begin = time.perf_counter()
                call()
                took[name].append(1e3 * (time.perf_counter() - begin))
    return {name: round(statistics.median(times), 3) for name, times in took.items()}


def tell(sizes: dict[str, int], difference: float, took: dict[str, float]) -> dict[str, Any]:
    """What was compared and measured, the first form's time the unit; raises where the numbers are not the same."""
    print(", ".join(f"{name} {size}" for name, size in sizes.items()) + f": relative difference {difference:.1e}")
    ours = next(iter(took.values()))
    for name, milliseconds in took.items():
        print(f"    {name:20} {milliseconds:8.2f} ms forward and backward, {milliseconds / ours:5.2f} times")
    assert difference < 1e-10, f"the call and the loop are not the same: {difference:.1e} apart"
    return {**sizes, "difference": difference, "milliseconds": took}


def report(rnn: nn.RNNBase, x: Tensor, state: State, reset: Tensor, rounds: int = 5) -> dict[str, Any]:
    """Compares and measures, tells both, and raises where the numbers are not the same."""
    x, gradient = x.detach().requires_grad_(), torch.ones(*x.shape[:2], rnn.hidden_size)

    def train(form: nn.Module, **options: Tensor) -> None:
        form(x, state, **options)[0].backward(gradient)

    difference = compare(forms(rnn).values(), x, state, reset=reset)
    took = measure({name: partial(train, form, reset=reset) for name, form in forms(rnn).items()}, rounds, 4)
    pair = measure({"with": partial(train, rnn, reset=reset), "without": partial(train, rnn)}, 10 * rounds, 1)
    cost = round(pair["with"] / pair["without"], 3)
    sizes = {"steps": x.shape[0], "rows": x.shape[1], "hidden": rnn.hidden_size, "episodes": int(reset.sum())}
    told = tell(sizes, difference, took)
    print(f"    with resets {cost:.3f} times the call without")
    return {**told, "resets": cost}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=["LSTM", "GRU", "RNN"], default=["LSTM", "GRU"])
    parser.add_argument("--rows", nargs="+", type=int, default=[2, 8, 16], help="of a minibatch")
    parser.add_argument("--hidden", nargs="+", type=int, default=[64, 128], help="units, and features of the input")
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--share", type=float, default=0.02, help="of the steps begin an episode")
    parser.add_argument("--rounds", type=int, default=7, help="of four calls of each form")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the numbers")
    options = parser.parse_args(arguments)

    table = []
    for cell, hidden, rows in itertools.product(options.cells, options.hidden, options.rows):
        torch.manual_seed(0)
        rnn = getattr(fused_rnn, cell)(hidden, hidden)
        x, reset = torch.randn(options.steps, rows, hidden), torch.rand(options.steps, rows) < options.share
        _, state = rnn(x)
        table.append(report(rnn, x, each(Tensor.detach, state), reset, options.rounds))
    write(options.out / "python_loop.json", "examples.python_loop", arguments, table=table)


if __name__ == "__main__":
    main()
