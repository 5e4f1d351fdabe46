"""The results as a picture: one row per case, a mark per provider at its speed relative to ``nn.*``; of a CUDA device
one row per cell and shape, and a mark per dtype for ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def draw(document: dict[str, Any], path: Path) -> None:
    """Raises ImportError where matplotlib is missing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cuda = document["header"]["device"] != "cpu"
    series, style = ("dtype", CUDA_STYLE) if cuda else ("provider", STYLE)
    rows = [row for row in document["results"] if row["status"] == "ok" and row["ratio"] and row["provider"] != "nn"]
    rows = [row for row in rows if row["provider"] == "fused" or not cuda]
    labels = list(dict.fromkeys(label(row, cuda) for row in document["results"]))
    modes = [mode for mode in ("infer", "train") if any(row["mode"] == mode for row in document["results"])]
    figure = Figure(figsize=(2.5 + 4.5 * len(modes), 1.9 + 0.24 * len(labels)), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    found = [row["ratio"] for row in rows] or [1.0]
    left, right = min(0.5, min(found) / 1.3), max(2.0, max(found) * 1.3)
    for panel, mode in zip(panels, modes, strict=True):
        for name, (colour, mark) in style.items():
            mine = [row for row in rows if row[series] == name and row["mode"] == mode]
            places = [labels.index(label(row, cuda)) for row in mine]
            panel.hlines(
                places, [row["ratio_low"] for row in mine], [row["ratio_high"] for row in mine], color=colour, lw=1
            )
            panel.plot([row["ratio"] for row in mine], places, mark, color=colour, ms=5, label=name, ls="none")
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
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    shown = {row[series] for row in rows}
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
