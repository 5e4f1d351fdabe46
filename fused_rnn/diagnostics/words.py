"""The numbers in words: a verdict by stated thresholds, and a table."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .flow import LayerFlow, geometric_mean

__all__ = ["EXPLODED", "VANISHED", "Verdict", "table", "verdict"]

# Of a gradient at the last step, what is left of it at the first.
VANISHED, EXPLODED = 1e-3, 1e3


class Verdict(NamedTuple):
    """What :func:`verdict` found; ``str`` of it is a sentence."""

    kind: str  #: "vanishing", "exploding", "healthy", "not finite" or "none"
    rate: float  #: factor a step, of those that passed something finite on; NaN if none did
    left: float  #: rate^(T-1); 0 where some step passed nothing on, NaN where a norm is not finite
    clipped: int = 0  #: how many steps a clip acted at
    end: int | None = None  #: the step where nothing of it arrives any more, or what is not finite

    def __str__(self) -> str:
        acted = f"; clipped at {self.clipped} step{'s' * (self.clipped > 1)}" if self.clipped else ""
        return self._said() + acted

    def _said(self) -> str:
        if self.kind == "none":
            return "no gradient goes from step to step"
        if self.kind == "not finite":
            before = "" if math.isnan(self.rate) else f" at step {self.end}; until there x {self.rate:.4g} a step"
            return "the gradient is not finite" + before
        if self.end is None:
            return f"{self.kind}: x {self.rate:.4g} a step, x {self.left:.2g} from the last step to the first"
        before = "" if math.isnan(self.rate) else f"x {self.rate:.4g} a step, "
        return f"{self.kind}: {before}nothing arrives at step {self.end}"


def verdict(flow: LayerFlow) -> Verdict:
    """What becomes of the gradient on its way through time, by the factor that a step passes on, the geometric mean of
    ``flow.transmission``.

    "vanishing" if less than ``VANISHED`` = 1e-3 is left over the whole sequence (rate^(T-1)), or where a step passes
    nothing on, as when f32 has no smaller number; "exploding" if more than ``EXPLODED`` = 1e3 comes out, "healthy"
    between; "not finite" where a norm is NaN or infinite, "none" where no gradient goes from step to step. All of it is
    said of the gradient as clips have left it; ``clipped`` is the number of steps at which they cut what came to h or c
    of some row.
    """
    clipped = len({t for cut in flow.clipping.values() for t in cut.rows.nonzero().flatten().tolist()})
    norms, factors = flow.h if flow.c is None else flow.h + flow.c, flow.transmission
    rate = geometric_mean(factors[factors.isfinite() & (factors > 0)])
    if (strange := ~norms.isfinite()).any():
        return Verdict("not finite", rate, math.nan, clipped, _met_first(strange, flow))
    if (nothing := factors == 0).any():
        return Verdict("vanishing", rate, 0.0, clipped, _met_first(nothing, flow))
    if math.isnan(rate):
        return Verdict("none", rate, math.nan, clipped)
    log_left = (flow.steps - 1) * math.log(rate)
    kind = "vanishing" if log_left < math.log(VANISHED) else "exploding" if log_left > math.log(EXPLODED) else "healthy"
    return Verdict(kind, rate, math.exp(min(log_left, 709.0)), clipped)


def _met_first(steps: Tensor, flow: LayerFlow) -> int:
    """Of the steps that are true, some of [T], the one that the gradient comes to before the others."""
    found: list[int] = steps.nonzero().flatten().tolist()
    return found[0] if flow.reverse else found[-1]


def table(flow: LayerFlow, rows: int = 11) -> str:
    """Some steps, evenly spaced, first and last among them."""
    columns = {"dL/dh": flow.h, "dL/dc": flow.c, "past gates": flow.kept, "through W_hh": flow.recurrent}
    shown = {name: values for name, values in columns.items() if values is not None}
    if flow.keeps:
        shown["share past gates"] = flow.share_kept
    shown |= {f"{state} clipped to": factor for state, (_, factor) in flow.clipping.items()}
    if flow.has_gates:
        shown |= {f"{gate} saturated": low + high for gate, (low, high) in flow.saturation.items()}
    steps = sorted({round(t) for t in torch.linspace(0, flow.steps - 1, min(rows, flow.steps), device="cpu").tolist()})
    lines = ["step  " + "  ".join(f"{name:>12}" for name in shown)]
    for t in steps:
        cells = []
        for name, values in shown.items():
            number = float(values[t])
            percent = name.startswith("share") or name.endswith(("saturated", "clipped to"))
            text = "" if math.isnan(number) else f"{number:.1%}" if percent else f"{number:.3e}"
            cells.append(f"{text:>{max(12, len(name))}}")
        lines.append(f"{t:>4}  " + "  ".join(cells))
    return "\n".join(line.rstrip() for line in lines)
