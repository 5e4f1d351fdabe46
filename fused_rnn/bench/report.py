"""One line of results, as a record and for a terminal."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from .cases import Case
from .limits import Machine, work
from .timing import Sample, quantiles

SCHEMA = 2  # of the JSON file; 1 had neither `precision` nor `host_us`
Results = dict[str, Any]  # such a file


@dataclasses.dataclass
class Row:
    """``status``: ok, refused (wrong result), failed (raised), unsupported, or skipped (out of time)."""

    case: Case
    provider: str
    status: str = "ok"
    reason: str = ""
    precision: str = ""  # of the products, as it was in force
    error: float | None = None  # relative, against float64
    ms: float | None = None  # median of the blocks
    ms_low: float | None = None  # 20th and 80th percentile
    ms_high: float | None = None
    us_per_step: float | None = None
    ratio: float | None = None  # the baseline's time over this one's: above 1 is faster
    ratio_low: float | None = None
    ratio_high: float | None = None
    host_us: float | None = None  # until a call returns, on an idle device (CUDA)
    first_ms: float | None = None  # the very first call
    calls: int | None = None  # in a block
    rounds: int | None = None
    peak_mb: float | None = None
    kept_mb: float | None = None
    flops: float | None = None
    bytes: float | None = None
    limit_ms: float | None = None
    share: float | None = None  # limit over time

    def as_dict(self) -> dict[str, Any]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**self.case.as_dict(), **{name: value for name, value in fields.items() if name != "case"}}

    def take(self, sample: Sample, baseline: Sample | None, machine: Machine | None) -> None:
        self.ms = sample.median * 1e3
        low, high = quantiles(sample.blocks)
        self.ms_low, self.ms_high = low * 1e3, high * 1e3
        self.us_per_step = sample.median * 1e6 / self.case.shape.T
        self.host_us = None if sample.host_s is None else sample.host_s * 1e6
        self.first_ms, self.calls = sample.first_s * 1e3, sample.calls
        self.rounds = len(sample.blocks)
        if baseline is not None:
            self.ratio = baseline.median / sample.median
            pairs = [other / own for other, own in zip(baseline.blocks, sample.blocks, strict=True)]
            self.ratio_low, self.ratio_high = quantiles(pairs)
        self.flops, self.bytes, _ = work(self.case)
        if machine is not None:
            self.limit_ms = machine.limit_s(self.case) * 1e3
            self.share = self.limit_ms / self.ms


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits without an exponent."""
    if value is None:
        return ""
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, digits - 1 - magnitude)}f}"


def markdown(head: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A table whose first ``left`` columns are text, the others numbers."""
    ruler = ["---" if column < left else "---:" for column in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ruler, *rows])


COLUMNS = (
    ("case", 42),
    ("provider", -12),
    ("ms", 9),
    ("20%..80%", 15),
    ("us/step", 9),
    ("ratio", 7),
    ("spread", 13),
    ("peak MB", 8),
    ("limit", 6),
    ("precision", 10),
    ("host us", 8),
)


def cells(row: Row) -> list[str]:
    return [
        str(row.case),
        row.provider,
        number(row.ms),
        f"{number(row.ms_low)}..{number(row.ms_high)}",
        number(row.us_per_step),
        f"{row.ratio:.2f}" if row.ratio else "",
        f"{row.ratio_low:.2f}..{row.ratio_high:.2f}" if row.ratio_low and row.ratio_high else "",
        "" if row.peak_mb is None else f"{row.peak_mb:.1f}",
        "" if row.share is None else f"{row.share:.0%}",
        *([row.precision, number(row.host_us)] if row.case.device == "cuda" else []),
    ]


def line(row: Row | None, cuda: bool = False) -> str:
    """A row for a terminal; None gives the heading, with the columns of CUDA or without."""
    texts = [name for name, _ in COLUMNS[: None if cuda else -2]] if row is None else cells(row)
    if row is not None and row.status != "ok":
        texts = [*texts[:2], f"{row.status}: {row.reason}"]
    padded = []
    for text, (_, width) in zip(texts, COLUMNS, strict=False):
        left = width < 0 or text == texts[0] or len(texts) == 3
        padded.append(text.ljust(abs(width)) if left else text.rjust(width))
    return "  ".join(padded).rstrip()
