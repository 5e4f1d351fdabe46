"""What it costs to look: a backward with ``gradient_flow`` around it beside one without, by turns. The gradients must
be the same bits; the time is told, of the backward alone and of the whole training step.

    python -m examples.recording [--cells RNN LSTM GRU] [--shapes 200,1,64 100,32,256] [--threads 1] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch

import fused_rnn
from examples.common import write
from fused_rnn.diagnostics import gradient_flow

SHAPES = ["200,1,64", "100,8,32", "200,8,64", "1000,32,64", "100,16,128", "100,32,256"]


def report(cell: str, steps: int, rows: int, hidden: int, seconds: float) -> dict[str, Any]:
    """Compares and measures one shape, tells of it, and raises where looking changes a gradient."""
    torch.manual_seed(0)
    module = getattr(fused_rnn, cell)(hidden, hidden)
    leaves = [torch.randn(steps, rows, hidden, requires_grad=True), *module.parameters()]
    gradient = torch.randn(steps, rows, hidden)
    kinds: dict[str, Any] = {
        "off": nullcontext,
        "on": lambda: gradient_flow(module),
        "gates=False": lambda: gradient_flow(module, gates=False),
    }

    def train(kind: str) -> tuple[float, float]:
        for leaf in leaves:
            leaf.grad = None
        begin = time.perf_counter()
        with kinds[kind]():
            y = module(leaves[0])[0]
            middle = time.perf_counter()
            y.backward(gradient)
            end = time.perf_counter()
        return end - middle, end - begin

    found = {}
    for kind in kinds:
        train(kind)
        found[kind] = [leaf.grad for leaf in leaves]
    for kind in kinds:
        same = all(torch.equal(a, b) for a, b in zip(found[kind], found["off"], strict=True))
        assert same, f"{cell} {steps},{rows},{hidden}: {kind} has other gradients"

    rounds = max(5, min(600, int(seconds / sum(train(kind)[1] for kind in kinds))))
    took: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, times in took.items():
            times.append(train(kind))
    backward, step = ({kind: median(t[i] for t in times) for kind, times in took.items()} for i in (0, 1))
    row: dict[str, Any] = {"cell": cell, "steps": steps, "rows": rows, "hidden": hidden}
    row["backward_us"] = round(backward["off"] * 1e6, 1)
    for kind in ("on", "gates=False"):
        row[kind] = {"backward": round(backward[kind] / backward["off"], 3), "step": round(step[kind] / step["off"], 3)}
    print(
        f"{cell:4} T {steps:4} B {rows:3} H {hidden:3}: backward {row['backward_us']:9.1f} us; looked at, backward "
        f"x {row['on']['backward']:.3f} (gates=False {row['gates=False']['backward']:.3f}), "
        f"training step x {row['on']['step']:.3f}",
        flush=True,
    )
    return row


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=["RNN", "LSTM", "GRU"], default=["RNN", "LSTM", "GRU"])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="T,B,H; I is H")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="about so long for each shape")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the numbers")
    options = parser.parse_args(arguments)
    sizes = [tuple(map(int, shape.split(","))) for shape in options.shapes]
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        table = [report(cell, *size, seconds=options.seconds) for cell in options.cells for size in sizes]
    finally:
        torch.set_num_threads(before)
    write(options.out / "recording.json", "examples.recording", arguments, table=table)


if __name__ == "__main__":
    main()
