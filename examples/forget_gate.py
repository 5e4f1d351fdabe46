"""The forget gate's bias: how far back the gradient reaches at initialisation, and what is learned then.

    python -m examples.forget_gate [--delays 5 12 60] [--iterations 300] [--seed 0] [--out FOLDER]

What comes to c_t from k steps later is multiplied by k forget gates, at first about sigmoid(b_f) each: of a gradient at
the last step 1% is left after 7 steps with biases of 0 (as torch draws them, about), 15 with a bias of 1 (Jozefowicz,
Zaremba and Sutskever 2015), about as many as wanted with chrono's, log of a span of steps (Tallec and Ollivier 2018).
W_hh brings some more. Asserted below

- of dL/dc_t, measured: it reaches at least as far as the biases alone would let it, and further from each of the three
  initialisations to the next, chrono's past the longest delay;
- of LSTMs that then learn to say a symbol again after a delay (examples/copy_memory.py): all learn the shortest, only
  chrono's the longest; a bias of 1 is enough for the one between.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import fused_rnn
from examples.common import draw_curves, plotting, write
from examples.copy_memory import FAILED, INITIAL, Result, Task, learn
from fused_rnn.diagnostics import LayerFlow, gradient_flow, plots

LEARNED = 0.5  # of guessing's cross entropy
SHARE = 0.01  # of the gradient: what is above it has been reached


def reach(norms: Tensor) -> int:
    """How many steps back from the last, of T, the norms stay above SHARE of the last one."""
    return int((norms.flip(0) > SHARE * norms[-1]).long().cumprod(0).sum()) - 1


def by_biases(lstm: fused_rnn.LSTM, steps: int) -> Tensor:
    """|dL/dc_t| [T], of |dL/dc_T| the same for all units, if forget gates were what their biases make them, and all."""
    bias = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach().double().chunk(4)[1]  # of i, f, g, o
    back = torch.arange(steps - 1, -1, -1)[:, None]
    return (torch.sigmoid(bias) ** back).square().mean(1).sqrt()


def at_first(initial: str, steps: int, options: argparse.Namespace) -> tuple[LayerFlow, int]:
    """The gradient of the last c, and its reach by the biases alone."""
    torch.manual_seed(options.seed)
    lstm = fused_rnn.LSTM(8, options.hidden)
    INITIAL[initial](lstm, steps)
    with gradient_flow(lstm, gates=False) as flow:
        _, (_, c) = lstm(torch.randn(steps, 8, 8))
        c.sum().backward()
    return flow.layers[0], reach(by_biases(lstm, steps))


def check_reach(reached: dict[str, tuple[int, int]], delay: int) -> None:
    for initial, (measured, alone) in reached.items():
        assert measured >= alone, f"{initial}: it reaches {measured} steps, the biases alone {alone}"
    drawn, one, chrono = (reached[initial][0] for initial in INITIAL)
    assert drawn < one < chrono, f"it does not reach further each time: {drawn}, {one}, {chrono} steps"
    assert chrono >= delay, f"with chrono it reaches {chrono} steps"


def check_learned(found: dict[int, dict[str, Result]]) -> None:
    short, between, long = sorted(found)
    learn_it = [(short, initial) for initial in INITIAL] + [(between, "forget bias 1"), (between, "chrono")]
    for delay, initial in [*learn_it, (long, "chrono")]:
        error = found[delay][initial].error
        assert error < LEARNED, f"{initial}: a delay of {delay} has not been learned, {error:.2f} of guessing"
    for initial in ("as drawn", "forget bias 1"):
        error = found[long][initial].error
        assert error > FAILED, f"{initial}: a delay of {long} has been learned, {error:.2f} of guessing"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delays", type=int, nargs=3, default=[5, 12, 60])
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the plots and the numbers")
    options = parser.parse_args(arguments)

    steps, flows, reached = 2 * max(options.delays), {}, {}
    print(f"at initialisation, {steps} steps: how far back {SHARE:.0%} of dL/dc is left")
    for initial in INITIAL:
        layer, alone = at_first(initial, steps, options)
        assert layer.c is not None
        flows[initial], reached[initial] = [layer], (reach(layer.c), alone)
        far = f"{reached[initial][0]} steps" if reached[initial][0] < steps - 1 else "all of them"
        print(f"  {initial:13}  {far}; by the biases alone {alone}; a step has x {layer.rate:.3f}")
    check_reach(reached, max(options.delays))

    found: dict[int, dict[str, Result]] = {}
    print("cross entropy after learning, of guessing, and share of symbols right")
    for delay in options.delays:
        found[delay] = {initial: learn(Task(delay, 1), initial, options.seed, options) for initial in INITIAL}
        results = (f"{initial} {r.error:.2f} ({r.right:.0%})" for initial, r in found[delay].items())
        print(f"  delay {delay:4}  " + ", ".join(results))
    curves = {f"delay {d}": {name: result.curve for name, result in by.items()} for d, by in found.items()}
    write(options.out / "forget_gate.json", "examples.forget_gate", arguments, reach=reached, curves=curves)
    with plotting(options.out / "forget_gate.png", options.out / "forget_gate_gradient.png"):
        draw_curves(curves, options.out / "forget_gate.png", 1.0, "cross entropy, of guessing")
        plots.plot_norms(flows, options.out / "forget_gate_gradient.png")
    check_learned(found)


if __name__ == "__main__":
    main()
