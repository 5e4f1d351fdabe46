"""The results as a picture: one row per case, a mark per provider at its speed relative to ``nn.*``; of a CUDA device
one row per cell and shape, and a mark per dtype for ours. At a glance: one row per shape of README's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import cases

STYLE = {  # colours that colour-blind readers tell apart, and shapes for those who print
    "fused": ("#0072b2", "o"),
    "stream": ("#56b4e9", "v"),
    "recompute": ("#009e73", "o"),
    "onnxruntime": ("#e69f00", "s"),
    "loop": ("#999999", "^"),
    "compiled": ("#cc79a7", "D"),
}
CUDA_STYLE = {
    "bf16": ("#0072b2", "o"),
    "f16": ("#e69f00", "s"),
    "tf32": ("#009e73", "^"),
    "f32": ("#cc79a7", "D"),
    "f64": ("#999999", "v"),
}
CELL_STYLE = {"LSTM": ("#0072b2", "o"), "GRU": ("#e69f00", "s"), "RNN": ("#009e73", "^")}
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def draw(document: dict[str, Any], path: Path) -> None:
    """All cases. Raises ImportError where matplotlib is missing."""
    cuda = document["header"]["device"] != "cpu"
    series, style = ("dtype", CUDA_STYLE) if cuda else ("provider", STYLE)
    rows = [row for row in _timed(document) if row["provider"] != "nn"]
    rows = [row for row in rows if row["provider"] == "fused" or not cuda]
    marks = [(label(row, cuda), row[series], row) for row in rows]
    labels = list(dict.fromkeys(label(row, cuda) for row in document["results"]))
    _paint(document, path, labels, marks, style, 0.0)


def overview(document: dict[str, Any], path: Path) -> Path:
    """Ours in f32, of the shapes of README's table (of all, where none of these was measured), a mark a cell.

    Returns where it is: of a CUDA device ``path`` with "-cuda" behind its name, so that both stand side by side.
    """
    rows = [row for row in _timed(document) if row["provider"] == "fused" and row["dtype"] == "f32"]
    shapes = list(dict.fromkeys(row["shape"] for row in rows if row["cell"] in CELL_STYLE))
    standard = {str(case.shape) for case in cases.standard()}
    shapes = [shape for shape in shapes if shape in standard] or shapes
    marks = [(row["shape"], row["cell"], row) for row in rows if row["shape"] in shapes and row["cell"] in CELL_STYLE]
    if document["header"]["device"] != "cpu":
        path = path.with_stem(path.stem + "-cuda")
    _paint(document, path, shapes, marks, CELL_STYLE, 0.22)
    return path


def _timed(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in document["results"] if row["status"] == "ok" and row["ratio"]]


def _paint(
    document: dict[str, Any],
    path: Path,
    labels: list[str],
    marks: list[tuple[str, str, dict[str, Any]]],
    style: dict[str, tuple[str, str]],
    apart: float,
) -> None:
    """``marks``: (label, name of the series, row of the results); series stand ``apart`` from each other at a label."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cuda = document["header"]["device"] != "cpu"
    modes = [mode for mode in ("infer", "train") if any(row["mode"] == mode for row in document["results"])]
    figure = Figure(figsize=(2.5 + 4.5 * len(modes), 1.9 + (0.24 + apart / 2) * len(labels)), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    found = [row["ratio"] for _, _, row in marks] or [1.0]
    left, right = min(0.5, min(found) / 1.3), max(2.0, max(found) * 1.3)
    for panel, mode in zip(panels, modes, strict=True):
        for k, (name, (colour, mark)) in enumerate(style.items()):
            mine = [(place, row) for place, series, row in marks if series == name and row["mode"] == mode]
            places = [labels.index(place) + apart * (k - (len(style) - 1) / 2) for place, _ in mine]
            ends = [[row[end] for _, row in mine] for end in ("ratio_low", "ratio_high")]
            panel.hlines(places, *ends, color=colour, lw=1)
            panel.plot([row["ratio"] for _, row in mine], places, mark, color=colour, ms=5, label=name, ls="none")
        panel.axvline(1, color="black", lw=0.8)
        panel.set_xscale("log")
        panel.set_xlim(left, right)
        ticks = [tick for tick in TICKS if left <= tick <= right]
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.grid(axis="both", lw=0.3)
        panel.set_title({"infer": "inference", "train": "training, forward + backward"}[mode], fontsize=10)
        panel.set_xlabel(f"speed relative to nn.*{' on cuDNN' if cuda else ''} (right of 1: faster)")
    panels[0].set_yticks(range(len(labels)), labels, fontsize=8)
    panels[0].set_ylim(max(len(labels), 1) - 0.5, -0.5)
    shown = {series for _, series, _ in marks}
    handles = [handle for handle in panels[0].lines if handle.get_label() in shown]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    facts = document["header"]
    where = f"{facts['device']}, cuDNN {facts['cuDNN']}" if cuda else f"{facts['cpu']}, {facts['threads']} threads"
    figure.suptitle(f"fused_rnn {facts['commit'] or ''} beside torch {facts['torch']}, {where}", fontsize=9)
    figure.savefig(path, dpi=120)


def label(row: dict[str, Any], cuda: bool) -> str:
    dtype = "" if cuda or row["dtype"] == "f32" else " " + row["dtype"]
    return f"{row['cell']}{dtype} {row['shape']}"
