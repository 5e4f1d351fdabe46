"""Tables for README and docs from a results file, written between marker comments:

    <!-- bench:summary begin -->  ...  <!-- bench:summary end -->

What stands between the two is replaced, everything else is left alone. Results of a CUDA device fill places of their
own, ``cuda-summary`` and ``cuda-full``, and leave those of the CPU as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import cuda_tables
from .report import Results, markdown, number


def origin(document: Results) -> str:
    facts = document["header"]
    words = [f"{facts['cpu']}, {facts['threads']} threads", f"torch {facts['torch']}"]
    words += [f"fused_rnn {facts['commit']}"] if facts.get("commit") else []
    words += [f"ISA {facts['ISA']}"] if facts.get("ISA") else []
    words += [f"ONNX Runtime {facts['onnxruntime']}"] if facts.get("onnxruntime") else []
    return f"Measured {document['date']} on {'; '.join(words)}; {document['settings']['rounds']} rounds."


def summary(document: Results) -> str:
    """f32: a shape a row, ``nn ms -> ours ms (ratio)`` for each cell and mode."""
    found = {
        (row["shape"], row["cell"], row["mode"], row["provider"]): row
        for row in document["results"]
        if row["dtype"] == "f32" and row["status"] == "ok"
    }
    columns = [(cell, mode) for cell in ("LSTM", "GRU", "RNN") for mode in ("infer", "train")]
    names = {"infer": "inference", "train": "training"}
    rows = []
    for shape in dict.fromkeys(shape for shape, *_ in found):
        cells = []
        for cell, mode in columns:
            base, ours = (found.get((shape, cell, mode, name)) for name in ("nn", "fused"))
            if base is None or ours is None:
                cells.append("")
            else:
                cells.append(f"{number(base['ms'])} → {number(ours['ms'])} **{ours['ratio']:.1f}x**")
        if any(cells):
            rows.append([shape, *cells])
    head = ["T,B,I,H", *(f"{cell} {names[mode]}" for cell, mode in columns)]
    text = (
        "Milliseconds a call, f32, `nn.*` → `fused_rnn`, and how many times faster; training is forward + backward. "
        "`2l` two layers, `bi` bidirectional, `packed` lengths from T down to T/4.\n\n"
    )
    return text + markdown(head, rows) + "\n\n" + origin(document)


def streams(document: Results) -> str:
    """f32 inference at batch 1: a shape a row, microseconds a call of ONNX Runtime's session and of our ``Stream``."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in document["results"]:
        if (
            row["dtype"] == "f32"
            and row["mode"] == "infer"
            and row["status"] == "ok"
            and row["shape"].split(",")[1] == "1"
        ):
            found.setdefault((row["shape"], row["cell"]), {})[row["provider"]] = row["ms"] * 1e3
    cells = ("LSTM", "GRU", "RNN")
    rows = []
    for shape in dict.fromkeys(shape for shape, _ in found):
        line = []
        for cell in cells:
            times = found.get((shape, cell), {})
            if "stream" in times and "onnxruntime" in times:
                peer, ours = times["onnxruntime"], times["stream"]
                line.append(f"{number(peer)} → {number(ours)} **{peer / ours:.1f}x**")
            else:
                line.append("")
        if any(line):
            rows.append([shape, *line])
    text = "Microseconds a call, f32, ONNX Runtime → `Stream`, and how many times faster.\n\n"
    return text + markdown(["T,B,I,H", *cells], rows)


def full(document: Results) -> str:
    """Every provider of every case."""
    rows = []
    for row in document["results"]:
        start = [f"{row['cell']} {row['mode']} {row['dtype']} {row['shape']}", row["provider"]]
        if row["status"] == "ok":
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
            spread = "" if row["ratio_low"] is None else f"{row['ratio_low']:.2f}–{row['ratio_high']:.2f}"
            peak = "" if row["peak_mb"] is None else f"{row['peak_mb']:.1f}"
            share = "" if row["share"] is None else f"{row['share']:.0%}"
            rows.append([*start, number(row["ms"]), number(row["us_per_step"]), ratio, spread, peak, share])
        elif row["status"] != "unsupported":
            rows.append([*start, row["status"], "", "", "", "", ""])
    head = ["case", "by", "ms", "us/step", "ratio", "20%–80%", "peak MB", "of limit"]
    limits = document.get("limits")
    reached = ""
    if limits:
        gemm = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in limits["gemm"].items())
        reached = (
            f" The machine's limits: GEMM {gemm} GFLOP/s; L2 {limits['l2_bandwidth'] / 1e9:.0f} GB/s, "
            f"past L2 {limits['far_bandwidth'] / 1e9:.0f} GB/s (all threads together)."
        )
    return origin(document) + reached + "\n\n" + markdown(head, rows)


Tables = dict[str, Callable[[Results], str]]
TABLES: Tables = {"summary": summary, "streams": streams, "full": full}
CUDA_TABLES: Tables = {"cuda-summary": cuda_tables.summary, "cuda-full": cuda_tables.full}


def tables_of(document: Results) -> Tables:
    return TABLES if document["header"]["device"] == "cpu" else CUDA_TABLES


def fill(text: str, document: Results) -> str:
    """``text`` with every marked place of the document's device filled."""
    for name, build in tables_of(document).items():
        begin, end = f"<!-- bench:{name} begin -->", f"<!-- bench:{name} end -->"
        table = f"{begin}\n\n{build(document)}\n\n{end}"
        head, found, rest = text.partition(begin)
        if found:
            text = head + table + rest.partition(end)[2]
    return text


def update(paths: list[Path], document: Results) -> list[str]:
    """Fills files in place; returns what was done to each."""
    said = []
    for path in paths:
        old = path.read_text()
        new = fill(old, document)
        if new != old:
            path.write_text(new)
        said.append(f"{path}: {'filled' if new != old else 'nothing to fill, or nothing new'}")
    return said
