"""Pictures of the gradient's way through time. They need matplotlib, and raise ImportError without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .flow import LayerFlow
from .words import verdict

__all__ = ["plot_gates", "plot_norms"]

# Colours that colour-blind readers tell apart, and lines for those who print.
STYLES = [("#0072b2", "-"), ("#e69f00", "--"), ("#009e73", "-."), ("#cc79a7", ":"), ("#56b4e9", "-"), ("#999999", "--")]


def plot_norms(flows: Mapping[str, Sequence[LayerFlow]], path: str | Path | None = None) -> Any:
    """The norm of dL/dh_t (an LSTM's dL/dc_t as a thin line) against the step: a panel for each name, a line for each
    layer and direction; all on one logarithmic scale, so that cells side by side compare. Triangles: where a clip cut
    what came from the step after.

    Returns the ``matplotlib`` figure, written to ``path`` (PNG) if there is one.
    """
    figure, panels = _figure(1, len(flows), 3.6 * len(flows) + 1, 3.6)
    for panel, (name, layers) in zip(panels, flows.items(), strict=True):
        for (colour, line), layer in zip(STYLES * len(layers), layers, strict=False):
            for state, norms, width in (("h", layer.h, 1.6), ("c", layer.c, 0.7)):
                if norms is None:
                    continue
                panel.plot(_positive(norms), line, color=colour, lw=width, label=f"dL/d{state}, {layer.name}")
                if state in layer.clipping and (at := layer.clipping[state].rows.nonzero().flatten().tolist()):
                    marks = {"marker": "v", "ms": 3 + width, "ls": "", "color": colour, "alpha": 0.6}
                    panel.plot(at, _positive(norms)[at], label=f"clipped dL/d{state}, {layer.name}", **marks)
        first = verdict(layers[0])
        panel.set_title(f"{name}: {first.kind}, x {first.rate:.3g} a step", fontsize=10)
        panel.set_xlabel("step")
        panel.set_xlim(0, max(layers[0].steps - 1, 1))
        panel.grid(lw=0.3)
        panel.legend(fontsize=7, frameon=False)
        panel.set_yscale("log")
    lowest, highest = panels[0].get_ylim()
    panels[0].set_ylim(max(lowest, 1e-30 * highest))  # what lies deeper is nothing to anybody
    panels[0].set_ylabel("norm of the gradient")
    return _written(figure, path)


def plot_gates(layer: LayerFlow, path: str | Path | None = None) -> Any:
    """A heat map for each gate: its mean over rows, units down, steps across. Raises RuntimeError if gates were not
    recorded."""
    gates = layer.gates
    figure, panels = _figure(len(gates), 1, 7, 0.6 + 1.5 * len(gates))
    for panel, (name, values) in zip(panels, gates.items(), strict=True):
        between = name in "gnh"  # -1 and 1
        colours = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1} if between else {"cmap": "viridis", "vmin": 0, "vmax": 1}
        image = panel.imshow(values.T.numpy(), aspect="auto", interpolation="nearest", **colours)
        figure.colorbar(image, ax=panel, pad=0.01)
        panel.set_ylabel(f"{name}, unit")
    panels[-1].set_xlabel("step")
    figure.suptitle(f"gates of {layer.cell}, {layer.name}", fontsize=10)
    return _written(figure, path)


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, sharex=rows > 1, sharey=columns > 1, squeeze=False).ravel()


def _positive(norms: Any) -> Any:
    """Zeros have no place on a logarithmic scale: gaps."""
    return norms.where(norms > 0, float("nan")).numpy()


def _written(figure: Any, path: str | Path | None) -> Any:
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure
