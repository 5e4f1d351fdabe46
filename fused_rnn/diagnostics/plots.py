"""Pictures of the gradient's way through time. They need matplotlib, and raise ImportError without it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .flow import LayerFlow
from .words import verdict

__all__ = ["plot_gates", "plot_norms"]

# Colours that colour-blind readers tell apart, and lines for those who print.
STYLES = [("#0072b2", "-"), ("#e69f00", "--"), ("#009e73", "-."), ("#cc79a7", ":"), ("#56b4e9", "-"), ("#999999", "--")]

ACROSS = 4  # panels in a row: more of them are too small to be read on a page
LINE = 45  # characters of a title that its panel is wide enough for
WITHIN = 6  # entries of a legend that a panel has room for; more stand below it


def plot_norms(flows: Mapping[str, Sequence[LayerFlow]], path: str | Path | None = None) -> Any:
    """The norm of dL/dh_t (an LSTM's dL/dc_t as a thin line) against the step: a panel for each name, a line for each
    layer and direction; all on one logarithmic scale, so that cells side by side compare. Triangles: where a clip cut
    what came from the step after.

    Returns the ``matplotlib`` figure, written to ``path`` (PNG) if there is one.
    """
    rows = max(1, math.ceil(len(flows) / ACROSS))
    columns = math.ceil(len(flows) / rows)
    lines = max(sum(1 if layer.c is None else 2 for layer in layers) for layers in flows.values())
    below = lines > WITHIN
    figure, panels = _figure(rows, columns, 3.6 * columns + 1, (3 + 0.08 * lines * below) * rows + 0.6)
    for unused in panels[len(flows) :]:
        unused.remove()
    panels, titles = panels[: len(flows)], _titles(flows)
    for panel, (name, layers) in zip(panels, flows.items(), strict=True):
        for (colour, line), layer in zip(_styles(layers), layers, strict=True):
            for state, norms, width in (("h", layer.h, 1.6), ("c", layer.c, 0.7)):
                if norms is None:
                    continue
                panel.plot(_positive(norms), line, color=colour, lw=width, label=f"dL/d{state}, {layer.name}")
                if state in layer.clipping and (at := layer.clipping[state].rows.nonzero().flatten().tolist()):
                    marks = {"marker": "v", "ms": 3 + width, "ls": "", "color": colour, "alpha": 0.6}
                    panel.plot(at, _positive(norms)[at], label=f"clipped dL/d{state}, {layer.name}", **marks)
        panel.set_title(titles[name], fontsize=10)
        panel.set_xlabel("step")
        panel.set_xlim(0, max(layers[0].steps - 1, 1))
        panel.grid(lw=0.3)
        panel.legend(fontsize=7, frameon=False, **(_under(panel) if below else {}))
        panel.set_yscale("log")
    lowest, highest = panels[0].get_ylim()
    panels[0].set_ylim(max(lowest, 1e-30 * highest))  # what lies deeper is nothing to anybody
    for leftmost in panels[::columns]:
        leftmost.set_ylabel("norm of the gradient")
    return _written(figure, path)


def plot_gates(layer: LayerFlow, path: str | Path | None = None) -> Any:
    """A heat map for each gate: its mean over rows, units down, steps across. Raises RuntimeError if gates were not
    recorded."""
    gates = layer.gates
    figure, panels = _figure(len(gates), 1, 7, 0.6 + 1.5 * len(gates))
    for panel, (name, values) in zip(panels, gates.items(), strict=True):
        between = name in "gnh"  # -1 and 1
        least, colours = (-1, "RdBu_r") if between else (0, "viridis")
        shown = values.clamp(least, 1).T.numpy()  # an RNN's h may be far past the ends
        image = panel.imshow(shown, aspect="auto", interpolation="nearest", cmap=colours, vmin=least, vmax=1)
        figure.colorbar(image, ax=panel, pad=0.01)
        panel.set_ylabel(f"{name}, unit")
    panels[-1].set_xlabel("step")
    figure.suptitle(f"gates of {layer.cell}, {layer.name}", fontsize=10)
    return _written(figure, path)


def _under(panel: Any) -> dict[str, Any]:
    """Where a legend stands under a panel and its labels."""
    from matplotlib.transforms import offset_copy

    at = offset_copy(panel.transAxes, panel.figure, y=-0.42)  # inches
    return {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": at, "ncols": 2}


def _styles(layers: Sequence[LayerFlow]) -> list[tuple[Any, str]]:
    """A colour for each layer; where there are two directions, dashes for the reverse one."""
    count = 1 + max(layer.layer for layer in layers)
    colours: list[Any] = [colour for colour, _ in STYLES]
    if count > len(STYLES):
        from matplotlib import colormaps

        colours = [colormaps["viridis"](i / count) for i in range(count)]  # but its brightest, lost on paper
    both = any(layer.reverse for layer in layers)
    lines = ["--" if layer.reverse else "-" if both else STYLES[layer.layer % len(STYLES)][1] for layer in layers]
    return [(colours[layer.layer], line) for layer, line in zip(layers, lines, strict=True)]


def _titles(flows: Mapping[str, Sequence[LayerFlow]]) -> dict[str, str]:
    """Name and verdict: in one line where there is room for all of them, else below each other."""
    said = {name: verdict(layers[0]) for name, layers in flows.items()}
    found = {name: f"{first.kind}, x {first.rate:.3g} a step" for name, first in said.items()}
    for name, layers in flows.items():
        if len(layers) > 1:
            found[name] += f" ({layers[0].name})"
    if all(len(f"{name}: {what}") <= LINE for name, what in found.items()):
        return {name: f"{name}: {what}" for name, what in found.items()}
    return {name: f"{textwrap.fill(name, LINE)}\n{what}" for name, what in found.items()}


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, sharex=columns == 1, sharey=columns > 1, squeeze=False).ravel()


def _positive(norms: Any) -> Any:
    """Zeros have no place on a logarithmic scale: gaps."""
    return norms.where(norms > 0, float("nan")).numpy()


def _written(figure: Any, path: str | Path | None) -> Any:
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure
