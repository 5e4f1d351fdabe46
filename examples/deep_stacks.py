"""Eight LSTM layers upon each other, with and without connections between them (docs/connections.md), learn to say what
they read one step before. What a plain stack of freshly drawn layers lets through to its first one is next to nothing:
it answers with the mean until long after the others know. The example asserts it.

    python -m examples.deep_stacks [--layers 8] [--hidden 16] [--steps 110] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn

import fused_rnn

CONNECTIONS = (None, "residual", "dense", "highway")
LEARNED, NOT_LEARNED = 0.25, 0.8  # mean squared error; the signal's variance is 1


def train(connection: str | None, options: argparse.Namespace, seed: int) -> tuple[float, float]:
    """The loss at the end, and how much smaller the first layer's gradient was than the last one's at the beginning."""
    torch.manual_seed(seed)
    stack = fused_rnn.LSTM(1, options.hidden, options.layers, connection=connection)
    head = nn.Linear(options.hidden, 1)
    optimizer = torch.optim.Adam([*stack.parameters(), *head.parameters()], options.rate)
    losses, share = [], 0.0
    for step in range(options.steps):
        x = torch.randn(12, 32, 1)  # [T, B, 1]
        loss = (head(stack(x)[0])[1:] - x[:-1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            first, last = (getattr(stack, f"weight_hh_l{k}").grad.norm() for k in (0, options.layers - 1))
            share = (first / last).item()
        nn.utils.clip_grad_norm_(stack.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / len(losses[-10:]), share


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(arguments)
    print(
        f"{options.layers} layers, {options.steps} steps of Adam; the best and the worst of {len(options.seeds)} seeds"
    )
    print("connection   error at the end   |dW_hh| of the first layer / of the last, at first   seconds")
    for connection in CONNECTIONS:
        start = time.perf_counter()
        runs = [train(connection, options, seed) for seed in options.seeds]
        errors, shares = zip(*runs, strict=True)
        worst, best = max(errors), min(errors)
        seconds = time.perf_counter() - start
        print(f"{connection or 'none':10}   {best:.3f} to {worst:.3f}     {min(shares):.1e}{'':44} {seconds:.1f}")
        if connection is None:
            assert best > NOT_LEARNED, f"the plain stack has learned: {best}"
        else:
            assert worst < LEARNED, f"the {connection} stack has not learned: {worst}"


if __name__ == "__main__":
    main()
