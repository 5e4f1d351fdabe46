"""Tables of a results file from a CUDA device: by whose ground a case stands on, by shape, and all of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from .cases import Case
from .cuda_cases import GROUNDS, ground
from .report import Results, markdown, number

Record = dict[str, Any]

FIELDS = ("cell", "mode", "dtype", "shape", "device")
NAMES = {"infer": "inference", "train": "training"}


def case_of(row: Record) -> Case:
    return Case.from_dict({name: row[name] for name in FIELDS})


def pairs(document: Results) -> Iterable[tuple[Case, dict[str, Record]]]:
    """Every case with the rows that were measured, by provider."""
    found: dict[Case, dict[str, Record]] = {}
    for row in document["results"]:
        rows = found.setdefault(case_of(row), {})
        if row["status"] == "ok":
            rows[row["provider"]] = row
    return found.items()


def origin(document: Results) -> str:
    facts = document["header"]
    words = [f"{facts['device']} (driver {facts['driver']}, CUDA {facts['CUDA']}, cuDNN {facts['cuDNN']})"]
    words += [f"torch {facts['torch']}", f"fused_rnn {facts['commit']}"]
    return f"Measured {document['date']} on {'; '.join(words)}; {document['settings']['rounds']} rounds."


def geomean(values: list[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def kind(case: Case) -> tuple[str, str]:
    """Ground and precision, as the goals are stated: full f32 and f64 stand apart from what tensor cores do."""
    wide = {"f32": "f32 in full", "f64": "f64"}.get(case.dtype)
    if wide:
        return "every ground", wide
    return GROUNDS[ground(case)], "f16" if ground(case) == "window" else "bf16, f16, TF32"


def grounds(document: Results) -> str:
    """Geometric mean and worst of our speed over cuDNN's, and of peak memory in training."""
    groups: dict[tuple[str, str, str], list[tuple[float, float | None, Case]]] = {}
    for case, rows in pairs(document):
        if "nn" in rows and "fused" in rows:
            theirs, ours = rows["nn"]["peak_mb"], rows["fused"]["peak_mb"]
            memory = ours / theirs if case.training and theirs and ours else None
            groups.setdefault((*kind(case), case.mode), []).append((rows["fused"]["ratio"], memory, case))
    order = [*GROUNDS.values(), "every ground"]
    lines = []
    for key in sorted(groups, key=lambda key: (key[1] in ("f32 in full", "f64"), key[1], order.index(key[0]), key[2])):
        place, dtype, mode = key
        worst = min(groups[key], key=lambda entry: entry[0])
        used = [memory for _, memory, _ in groups[key] if memory]
        speed = [f"{geomean([ratio for ratio, *_ in groups[key]]):.2f}", f"{worst[0]:.2f} ({brief(worst[2])})"]
        peak = [f"{geomean(used):.2f}", f"{max(used):.2f}"] if used else ["", ""]
        lines.append([place, dtype, NAMES[mode], str(len(groups[key])), *speed, *peak])
    if not lines:
        return "No case was measured by both."
    head = ["ground", "precision", "", "cases", "geomean", "worst", "memory, geomean", "memory, worst"]
    return markdown(head, lines, left=3)


def brief(case: Case) -> str:
    return f"{case.cell} {case.dtype} {case.shape}"


def by_shape(document: Results, dtype: str) -> str:
    """Microseconds a step of cuDNN and of ours for LSTM and GRU."""
    found = {(str(case.shape), case.cell, case.mode): rows for case, rows in pairs(document) if case.dtype == dtype}
    columns = [(cell, mode) for cell in ("LSTM", "GRU") for mode in ("infer", "train")]
    lines = []
    for shape in dict.fromkeys(shape for shape, *_ in found):
        cells = []
        for column in columns:
            rows = found.get((shape, *column), {})
            both = [rows[name]["us_per_step"] for name in ("nn", "fused") if name in rows]
            text = f"{number(both[0])} → {number(both[1])} **{both[0] / both[1]:.1f}x**" if len(both) == 2 else ""
            cells.append(text)
        if any(cells):
            lines.append([shape, *cells])
    return markdown(["T,B,I,H", *(f"{cell} {NAMES[mode]}" for cell, mode in columns)], lines) if lines else ""


def prices(document: Results) -> str:
    """What benchmarks/exchange.cu measured on the same device."""
    lines = []
    for row in document.get("exchange", ()):
        if "ns" in row:
            sizes = [str(row[name] or "") for name in ("blocks", "clusters", "bytes")]
            lines.append([row["what"], *sizes, *(number(row[name]) for name in ("ns", "low", "high"))])
    return markdown(["once", "blocks", "clusters", "bytes of h", "ns", "least", "most"], lines) if lines else ""


def summary(document: Results) -> str:
    parts = [
        "How many times faster than `nn.*` on cuDNN in the same precision, input product included (geometric mean and "
        "worst case), and peak memory of training over cuDNN's. The grounds are explained in docs/performance.md.",
        grounds(document),
    ]
    if table := by_shape(document, "bf16"):
        parts += ["Microseconds a time step, bf16, cuDNN → `fused_rnn`; training is forward + backward:", table]
    return "\n\n".join([*parts, origin(document)])


def full(document: Results) -> str:
    """A row a case: microseconds a step of all providers, and ours beside cuDNN."""
    lines = []
    for case, rows in pairs(document):
        steps = [number(rows[name]["us_per_step"]) if name in rows else "" for name in ("nn", "native", "fused")]
        base, ours = rows.get("nn"), rows.get("fused")
        cells = [f"{case.cell} {case.mode} {case.shape}", precision_of(case, rows), ground(case), *steps]
        if base and ours:
            cells += [f"{ours['ratio']:.2f}", f"{ours['ratio_low']:.2f}–{ours['ratio_high']:.2f}"]
            cells += [both(base["host_us"], ours["host_us"]), both(base["peak_mb"], ours["peak_mb"])]
            cells += ["" if ours["share"] is None else f"{ours['share']:.0%}"]
        else:
            cells += [unmeasured(document, case), *[""] * 4]
        lines.append(cells)
    head = ["case", "precision", "ground", "cuDNN us/step", "native us/step", "ours us/step", "ratio", "20%–80%"]
    head += ["host us", "peak MB", "of limit"]
    parts = [origin(document), grounds(document), prices(document), markdown(head, lines, left=3)]
    return "\n\n".join(part for part in parts if part)


def precision_of(case: Case, rows: dict[str, Record]) -> str:
    """The dtype, and for f32 what its products were computed in: read from the switches at the time."""
    said = {row["precision"] for row in rows.values()} - {case.dtype, ""}
    return f"{case.dtype} ({', '.join(sorted(said))})" if said else case.dtype


def both(theirs: float | None, ours: float | None) -> str:
    return "" if theirs is None or ours is None else f"{number(theirs)} → {number(ours)}"


def unmeasured(document: Results, case: Case) -> str:
    """Why there is no ratio."""
    fields = case.as_dict()
    rows = [row for row in document["results"] if row["provider"] == "fused" and fields.items() <= row.items()]
    return ", ".join(row["status"] for row in rows if row["status"] != "ok")
