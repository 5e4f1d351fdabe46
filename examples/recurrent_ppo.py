"""Recurrent PPO (Schulman et al. 2017) on Gymnasium's CartPole without its velocities: who sees positions alone must
remember. A rollout goes through the recurrent layer in one call, and ``reset=`` says where episodes begin in it.

    python -m examples.recurrent_ppo [--quick] [--cell GRU] [--hidden 64] [--out FOLDER]

Beside it a policy without memory is trained, which must do far worse. Then that call is compared with the Python loop
over time that recurrent PPO is usually written with: outputs and gradients must be the same; the time is told.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorObservationWrapper
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.distributions import Categorical

import fused_rnn
from examples.common import write
from examples.python_loop import State, each, forms, report

GAMMA, LAMBDA = 0.99, 0.95  # discount; decay of generalized advantage estimates
CLIP, VALUE_WEIGHT, ENTROPY_WEIGHT, GRADIENT_NORM = 0.2, 0.5, 0.01, 0.5
EPOCHS, MINIBATCHES, STEPS = 4, 4, 128


class Positions(VectorObservationWrapper):
    """Position of the cart and angle of the pole, 1 where the episode ends (2.4, 12 degrees); no velocities."""

    def __init__(self, envs: VectorEnv) -> None:
        super().__init__(envs)
        # After an episode's last observation comes a step whose action is ignored, then the next one's first.
        assert envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP

    def observations(self, observations: np.ndarray) -> np.ndarray:
        return observations[:, [0, 2]] / np.array([2.4, np.radians(12)], np.float32)


class NoMemory(nn.Module):
    """In place of a recurrent layer. Its state has no elements."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layer = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, state: State, *, reset: Tensor) -> tuple[Tensor, State]:
        return self.layer(x).tanh(), x.new_empty(1, x.shape[1], 0)


class Policy(nn.Module):
    """Observations [T, B, 2] in; logits of the actions [T, B, 2], values [T, B] and the last state out."""

    def __init__(self, cell: str, hidden: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, hidden), nn.Tanh())
        self.rnn: Any
        if cell == "none":
            self.rnn = NoMemory(hidden)
        else:
            self.rnn = fused_rnn.init.orthogonal_(getattr(fused_rnn, cell)(hidden, hidden))
        self.actor, self.critic = nn.Linear(hidden, 2), nn.Linear(hidden, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, {self.actor: 0.01, self.critic: 1.0}.get(layer, 2**0.5))
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, state: State, begins: Tensor) -> tuple[Tensor, Tensor, State]:
        y, state = self.rnn(self.encoder(x), state, reset=begins)
        return self.actor(y), self.critic(y).squeeze(-1), state


@dataclass
class Rollout:
    """T steps of B environments, [T, B]; of observations [T, B, 2], of values [T + 1, B]."""

    state: State  # before the first step
    values: Tensor
    observations: Tensor
    begins: Tensor  # the first observation of an episode
    ended: Tensor  # the last one: it has a value, but no action follows
    actions: Tensor
    log_probs: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor

    def of(self, rows: Tensor) -> Rollout:
        return Rollout(*(each(lambda column: column[:, rows], value) for value in vars(self).values()))


@torch.no_grad()
def play(policy: Policy, rows: int, seed: int, returns: list[float]) -> Iterator[Rollout]:
    """Rollouts without end; the returns of the episodes that end in them are appended to ``returns``."""
    envs = Positions(gymnasium.make_vec("CartPole-v1", num_envs=rows, vectorization_mode="vector_entry_point"))
    x = torch.from_numpy(envs.reset(seed=seed)[0])
    begins, ended, collected = torch.ones(rows).bool(), torch.zeros(rows).bool(), torch.zeros(rows)
    _, _, state = policy(x[None], None, begins[None])  # of any content: the first step begins episodes
    while True:
        first, record = state, []
        for _ in range(STEPS):
            logits, values, state = policy(x[None], state, begins[None])
            choice = Categorical(logits=logits[0])
            action = choice.sample()
            after, *outcome, _ = envs.step(action.numpy())
            reward, terminated, truncated = map(torch.from_numpy, outcome)
            record.append((x, begins, ended, action, choice.log_prob(action), reward, terminated, truncated, values[0]))
            x, begins, ended = torch.from_numpy(after), ended, terminated | truncated
            collected += reward
            returns += collected[ended].tolist()
            collected[ended] = 0
        *columns, before = [torch.stack(column) for column in zip(*record, strict=True)]
        _, values, _ = policy(x[None], state, begins[None])
        yield Rollout(first, torch.cat([before, values]), *columns)


def advantages(rollout: Rollout) -> Tensor:
    """Generalized advantage estimates [T, B] (Schulman et al. 2016).

    An episode that terminates has nothing to gain any more. One that is truncated would have gone on: the value of its
    last observation, which is that of the step after, stands for the rest. Neither sums on into the next episode.
    """
    estimate = torch.zeros_like(rollout.log_probs)
    following = torch.zeros_like(estimate[0])
    for t in reversed(range(len(estimate))):
        # Scaled so that values stay below 1. Larger ones drown the policy's gradient in the layers that both share.
        reward = (1 - GAMMA) * rollout.rewards[t]
        error = reward + GAMMA * ~rollout.terminated[t] * rollout.values[t + 1] - rollout.values[t]
        estimate[t] = following = error + GAMMA * LAMBDA * ~(rollout.terminated[t] | rollout.truncated[t]) * following
    return estimate


def update(policy: Policy, optimizer: torch.optim.Optimizer, rollout: Rollout) -> None:
    """A minibatch is some of the environments with all their steps, from the state that each began the rollout with."""
    estimate = advantages(rollout)
    goals = rollout.values[:-1] + estimate
    for _ in range(EPOCHS):
        for rows in torch.randperm(estimate.shape[1]).chunk(MINIBATCHES):
            part, advantage = rollout.of(rows), estimate[:, rows]
            logits, values, _ = policy(part.observations, part.state, part.begins)
            taken = ~part.ended
            choice = Categorical(logits=logits[taken])
            ratio = (choice.log_prob(part.actions[taken]) - part.log_probs[taken]).exp()
            advantage = (advantage[taken] - advantage[taken].mean()) / (advantage[taken].std() + 1e-8)
            gain = torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
            error = 0.5 * (values - goals[:, rows])[taken].square().mean()
            loss = VALUE_WEIGHT * error - gain - ENTROPY_WEIGHT * choice.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), GRADIENT_NORM)
            optimizer.step()


def train(policy: Policy, rows: int, iterations: int, rate: float, seed: int) -> list[float]:
    """The mean return of the last 100 episodes after each iteration."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=rate, eps=1e-5)
    curve: list[float] = []
    returns: list[float] = []
    for rollout in islice(play(policy, rows, seed, returns), iterations):
        optimizer.param_groups[0]["lr"] = rate * (1 - len(curve) / iterations)
        update(policy, optimizer, rollout)
        curve.append(round(statistics.fmean(returns[-100:]), 1))
    return curve


def draw(curves: dict[str, list[list[float]]], frames: int, path: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    panel = figure.subplots()
    for color, (cell, runs) in enumerate(curves.items()):
        for k, run in enumerate(runs):
            steps = [frames * (i + 1) for i in range(len(run))]
            panel.plot(steps, run, color=f"C{color}", lw=1, label="_" * k + ("no memory" if cell == "none" else cell))
    panel.set(xlabel="steps of all environments", ylabel="return, mean of the last 100 episodes", ylim=(0, 510))
    panel.set_title("PPO on CartPole-v1 without velocities, a line for each seed", fontsize=10)
    panel.legend(loc="center right")
    figure.savefig(path, dpi=120)


def learn(options: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Learning curves of a policy with memory and of one without, and the proof that the task needs it."""
    curves: dict[str, list[list[float]]] = {}
    for cell in dict.fromkeys([options.cell, "none"]):
        for seed in options.seeds:
            torch.manual_seed(seed)
            policy, begin = Policy(cell, options.hidden), time.perf_counter()
            curves.setdefault(cell, []).append(train(policy, options.rows, options.iterations, options.rate, seed))
            took = time.perf_counter() - begin
            print(f"{cell:4} seed {seed}: mean return {curves[cell][-1][-1]:5.1f} of 500 after {took:.1f} s")
    reached, without = min(run[-1] for run in curves[options.cell]), max(run[-1] for run in curves["none"])
    if options.cell != "none":
        assert reached > options.least, f"it has not learned: mean return {reached}, {options.least} wanted"
        assert reached > 2 * without, f"no memory needed: mean return {without} without, {reached} with"
    return curves


def against_the_loop(cell: str, hidden: int, rows: int) -> None:
    """The recurrent layer and the same by a Python loop over time: alone over a minibatch, then in the whole update."""
    torch.manual_seed(0)
    policy = Policy(cell, hidden)  # it has learned nothing: episodes take some 20 steps
    _, rollout = islice(play(policy, rows, 0, []), 2)  # states are carried into the second
    part = rollout.of(torch.arange(rows // MINIBATCHES))
    report(policy.rnn, policy.encoder(part.observations), part.state, part.begins)
    for name, form in forms(policy.rnn).items():
        policy.rnn = form
        optimizer, begin = torch.optim.Adam(policy.parameters(), lr=0.0), time.perf_counter()
        update(policy, optimizer, rollout)
        print(
            f"    {name:20} {1e3 * (time.perf_counter() - begin) / (EPOCHS * MINIBATCHES):8.2f} ms of the whole update"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=["LSTM", "GRU", "RNN", "none"], default="LSTM")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--rows", type=int, default=32, help="environments; a quarter of them is a minibatch")
    parser.add_argument("--iterations", type=int, default=200, help="rollouts, each followed by its update")
    parser.add_argument("--rate", type=float, default=2e-3, help="of learning, falling to 0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="a training for each")
    parser.add_argument("--least", type=float, default=400, help="return that the policy with memory must reach")
    parser.add_argument("--quick", action="store_true", help="50 iterations, one seed, a return of 200")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the plot and the numbers")
    options = parser.parse_args(arguments)
    if options.quick:
        options.iterations, options.seeds, options.least = 50, [1], 200

    if options.cell != "none":
        against_the_loop(options.cell, options.hidden, options.rows)
    curves = learn(options)
    write(options.out / "recurrent_ppo.json", "examples.recurrent_ppo", arguments, curves=curves)
    draw(curves, options.rows * STEPS, options.out / "recurrent_ppo.png")


if __name__ == "__main__":
    main()
