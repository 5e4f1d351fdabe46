"""What examples share: records of a run with the command that made it, and curves."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fused_rnn.bench.header import cpu_model
from fused_rnn.diagnostics import plots


def write(path: Path, module: str, arguments: list[str] | None, **content: Any) -> None:
    """JSON of ``content`` and of the command that made it."""
    command = " ".join(["python -m", module, *(sys.argv[1:] if arguments is None else arguments)])
    record = {"command": command, "torch": torch.__version__, "cpu": cpu_model(), "threads": torch.get_num_threads()}
    record |= content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in record.items()) + "\n}\n")


@contextmanager
def plotting(*paths: Path) -> Iterator[None]:
    """Around what draws ``paths``: tells which there are, or that matplotlib is missing."""
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield
        print(f"plots: {', '.join(map(str, paths))}")
    except ImportError:
        print("no plots, as matplotlib is missing")


def draw_curves(panels: Mapping[str, Mapping[str, Sequence[float]]], path: Path, level: float, what: str) -> None:
    """Errors while learning, means of 20 iterations, beside the ``level`` of who remembers nothing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 + 4 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(1, len(panels), sharey=True, squeeze=False).ravel()
    for axes, (title, curves) in zip(places, panels.items(), strict=True):
        for (colour, line), (name, curve) in zip(plots.STYLES * len(curves), curves.items(), strict=False):
            mean = torch.tensor(curve).unfold(0, min(20, len(curve)), 1).mean(-1)
            axes.plot(mean, line, color=colour, label=name)
        axes.axhline(level, color="black", lw=0.8)
        axes.set(xlabel="iteration", title=title, yscale="log")
        axes.legend(frameon=False)
    places[0].set_ylabel(what)
    figure.savefig(path, dpi=120)
