"""The adding problem (Hochreiter and Schmidhuber 1997), T = 100, live: the plain RNN fails, LSTM and GRU learn, and the
gradient says why.

    python -m examples.adding_problem [--steps 100] [--iterations 800] [--cells LSTM GRU RNN] [--out FOLDER]

Each row is T pairs (a number in [0, 1], a mark); two steps are marked, one in each half. Wanted is the sum of the two
marked numbers. Always saying 1 has a mean squared error of 1/6 = 0.167: whoever stays there remembers nothing. Asserted
at the end, on fresh rows: LSTM and GRU are below 0.02, the tanh RNN is above 0.1; and, before training, less of the
gradient at the last step comes to the first in the RNN than in either.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fused_rnn
from examples.common import draw_curves, plotting, write
from fused_rnn.diagnostics import gradient_flow, plots

GUESSING = 1 / 6
LEARNED, FAILED = 0.02, 0.1


def rows(steps: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x [T, B, 2], wanted [B]."""
    numbers = torch.rand(steps, batch, generator=generator)
    marks = torch.zeros(steps, batch)
    half = steps // 2
    for low, high in ((0, half), (half, steps)):
        marks.scatter_(0, torch.randint(low, high, (1, batch), generator=generator), 1)
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)


class Adder(nn.Module):
    def __init__(self, cell: str, hidden: int, steps: int) -> None:
        super().__init__()
        self.rnn: Any = getattr(fused_rnn, cell)(2, hidden)
        fused_rnn.init.orthogonal_(self.rnn)
        if cell != "RNN":
            fused_rnn.init.chrono_(self.rnn, max_steps=steps)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x)
        return self.head(y[-1]).squeeze(-1)


def error(model: nn.Module, x: Tensor, wanted: Tensor) -> Tensor:
    return (model(x) - wanted).square().mean()


def learn(cell: str, options: argparse.Namespace) -> dict[str, Any]:
    """Errors while training, the error on fresh rows, and the gradient before."""
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    model = Adder(cell, options.hidden, options.steps)
    with gradient_flow(model) as flow:
        error(model, *rows(options.steps, options.batch, generator)).backward()
    optimizer = torch.optim.Adam(model.parameters(), options.rate)
    curve = []
    start = time.perf_counter()
    for _ in range(options.iterations):
        loss = error(model, *rows(options.steps, options.batch, generator))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.append(loss.item())
    seconds = time.perf_counter() - start
    with torch.no_grad():
        fresh = error(model, *rows(options.steps, 2000, generator)).item()
    layer = flow.layers[0]
    print(
        f"{cell:4}  error {fresh:.4f} (guessing {GUESSING:.3f}), {options.iterations} iterations, {seconds:.0f} s; "
        f"before, |dL/dh| last {layer.h[-1]:.1e}, first {layer.h[0]:.1e}, x {layer.rate:.3f} a step"
    )
    return {"curve": curve, "error": fresh, "flow": layer}


def check(found: dict[str, dict[str, Any]]) -> None:
    for cell, result in found.items():
        if cell == "RNN":
            assert result["error"] > FAILED, f"the RNN has learned: {result['error']:.4f}"
        else:
            assert result["error"] < LEARNED, f"the {cell} has not learned: {result['error']:.4f}"
    left = {cell: float(result["flow"].h[0] / result["flow"].h[-1]) for cell, result in found.items()}
    if "RNN" in found:
        for cell in set(found) - {"RNN"}:
            assert left["RNN"] < left[cell], f"more of the gradient is left in the RNN than in the {cell}"


def draw(found: dict[str, dict[str, Any]], folder: Path) -> None:
    curves = {f"{cell}: {result['error']:.4f}": result["curve"] for cell, result in found.items()}
    what = "mean squared error (line: always saying 1)"
    draw_curves({"adding problem": curves}, folder / "adding_problem.png", GUESSING, what)
    plots.plot_norms({cell: [result["flow"]] for cell, result in found.items()}, folder / "adding_problem_gradient.png")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=["LSTM", "GRU", "RNN"], default=["LSTM", "GRU", "RNN"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=800)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args(arguments)
    found = {cell: learn(cell, options) for cell in options.cells}
    record = {cell: {"error": r["error"], "curve": [round(e, 4) for e in r["curve"]]} for cell, r in found.items()}
    write(options.out / "adding_problem.json", "examples.adding_problem", arguments, **record)
    with plotting(options.out / "adding_problem.png", options.out / "adding_problem_gradient.png"):
        draw(found, options.out)
    check(found)


if __name__ == "__main__":
    main()
