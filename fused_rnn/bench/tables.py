"""Tables for README and docs from a results file, written between marker comments:

    <!-- bench:summary begin -->  ...  <!-- bench:summary end -->

What stands between the two is replaced, everything else is left alone. Results of a CUDA device fill places of their
own, ``cuda-summary`` and ``cuda-full``, and leave those of the CPU as they are; results of bf16 fill ``bf16``, others
the rest.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import cases, cuda_tables
from .report import Results, markdown, number

COLUMNS = [
    (cell, mode, f"{cell} {name}")
    for cell in ("LSTM", "GRU", "RNN")
    for mode, name in (("infer", "inference"), ("train", "training"))
]


def origin(document: Results) -> str:
    facts = document["header"]
    words = [f"{facts['cpu']}, {facts['threads']} threads", f"torch {facts['torch']}"]
    words += [f"fused_rnn {facts['commit']}"] if facts.get("commit") else []
    words += [f"ISA {facts['ISA']}"] if facts.get("ISA") else []
    words += [f"ONNX Runtime {facts['onnxruntime']}"] if facts.get("onnxruntime") else []
    words += [f"{document['settings']['rounds']} rounds"]
    words += ["beside a busy process on every core"] if document.get("busy") else []
    words += [document["note"]] if document.get("note") else []  # by hand, where two runs were put together
    return f"Measured {document['date']} on {'; '.join(words)}."


def summary(document: Results) -> str:
    """f32: a shape a row, ``nn ms -> ours ms (ratio)`` for each cell and mode. Of a grid only the standard shapes."""
    found = {
        (row["shape"], row["cell"], row["mode"], row["provider"]): row
        for row in document["results"]
        if row["dtype"] == "f32" and row["status"] == "ok"
    }
    rows = []
    shapes = list(dict.fromkeys(shape for shape, *_ in found))
    standard = {str(case.shape) for case in cases.standard()}
    for shape in [shape for shape in shapes if shape in standard] or shapes:
        line = []
        for cell, mode, _ in COLUMNS:
            base, ours = (found.get((shape, cell, mode, name)) for name in ("nn", "fused"))
            if base is None or ours is None:
                line.append("")
            else:
                line.append(f"{number(base['ms'])} → {number(ours['ms'])} **{ours['ratio']:.1f}x**")
        if any(line):
            rows.append([shape, *line])
    head = ["T,B,I,H", *(title for *_, title in COLUMNS)]
    text = (
        "Milliseconds a call, f32, `nn.*` → `fused_rnn`, and how many times faster; training is forward + backward. "
        "`2l` two layers, `bi` bidirectional, `packed` lengths from T down to T/4, "
        "`last` training on a loss of the last step.\n\n"
    )
    over_all = "Everything measured there ([docs/performance.md](docs/performance.md)), times faster:\n\n" + means(
        document
    )
    return "\n\n".join([text + markdown(head, rows), origin(document), over_all])


def bf16(document: Results) -> str:
    """How many times faster than ``nn.*``: a shape a row."""
    results = [row for row in document["results"] if row["dtype"] == "bf16"]
    found = {
        (row["shape"], row["cell"], row["mode"]): row["ratio"]
        for row in results
        if row["provider"] == "fused" and row["status"] == "ok"
    }
    rows = []
    for shape in dict.fromkeys(shape for shape, *_ in found):
        ratios = (found.get((shape, cell, mode)) for cell, mode, _ in COLUMNS)
        rows.append([shape, *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)])
    table = markdown(["T,B,I,H", *(title for *_, title in COLUMNS)], rows)
    return "\n\n".join([origin(document), means({**document, "results": results}), table])


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


def means(document: Results) -> str:
    """Geomeans and worst shapes over ``nn.*``, packed sequences and losses of one step apart, and over ONNX Runtime of
    the better of ours."""
    rows = []
    for (name, peer), speeds in groups(document).items():
        worst = min(speeds, key=lambda case: speeds[case])
        slower = sum(speed < 0.95 for speed in speeds.values())
        mean = statistics.geometric_mean(speeds.values())
        rows.append([name, peer, str(len(speeds)), f"{mean:.2f}", f"{speeds[worst]:.2f}", worst, str(slower)])
    return markdown(["", "over", "cases", "geomean", "worst", "of case", "below 0.95"], rows, left=2)


def groups(document: Results) -> dict[tuple[str, str], dict[str, float]]:
    """(what, peer) -> how many times faster ours is, by case."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for case, by in by_case(document).items():
        first = next(iter(by.values()))
        mode = {"infer": "inference", "train": "training"}[first["mode"]]
        shape = first["shape"].split(",")
        kind = {"packed": ", packed", "last": ", loss of the last step"}.get(shape[-1], "")
        if "fused" in by and by["fused"]["ratio"]:
            group = found.setdefault((f"{first['dtype']} {mode}{kind}", "`nn`"), {})
            group[case] = by["fused"]["ratio"]
        ours = [by[name]["ms"] for name in ("fused", "stream") if name in by]
        if "onnxruntime" in by and ours:
            small = shape[1] == "1" and int(shape[3]) <= 256
            what = f"{first['dtype']} {mode}, {'B = 1, H up to 256' if small else 'others'}"
            found.setdefault((what, "`onnxruntime`"), {})[case] = by["onnxruntime"]["ms"] / min(ours)
    return found


def by_case(document: Results) -> dict[str, dict[str, dict[str, Any]]]:
    """Case -> provider -> row, of what was measured."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in document["results"]:
        if row["status"] == "ok":
            case = f"{row['cell']} {row['mode']} {row['dtype']} {row['shape']}"
            found.setdefault(case, {})[row["provider"]] = row
    return found


def full(document: Results) -> str:
    """Every case a row: times, ours over each peer's, how near we and ``nn.*`` come to the machine's limit, memory."""
    rows = []
    for case, by in by_case(document).items():
        base, ours = by.get("nn"), by.get("fused")
        if base is None or ours is None:
            continue

        def over(peer: str, own: str, by: dict[str, dict[str, Any]] = by) -> str:
            return f"{by[peer]['ms'] / by[own]['ms']:.2f}" if peer in by and own in by else ""

        spread = "" if ours["ratio_low"] is None else f"{ours['ratio_low']:.2f}–{ours['ratio_high']:.2f}"
        shares = ["" if row["share"] is None else f"{row['share']:.0%}" for row in (base, ours)]
        peaks = ["" if row["peak_mb"] is None else f"{row['peak_mb']:.1f}" for row in (base, ours)]
        rows.append(
            [
                *(case, number(base["ms"]), number(ours["ms"]), f"**{ours['ratio']:.2f}**", spread),
                *(over("onnxruntime", "fused"), over("onnxruntime", "stream"), *shares, *peaks),
            ]
        )
    head = ["case", "`nn` ms", "ours ms", "times faster", "20%–80%", "than ONNX Runtime", "`Stream` than it"]
    head += ["of limit, `nn`", "ours", "peak MB, `nn`", "ours"]
    limits = document.get("limits")
    reached = ""
    if limits:
        gemm = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in limits["gemm"].items())
        reached = (
            f" The machine's limits: GEMM {gemm} GFLOP/s; L2 {limits['l2_bandwidth'] / 1e9:.0f} GB/s, "
            f"past L2 {limits['far_bandwidth'] / 1e9:.0f} GB/s (all threads together)."
        )
    return "\n\n".join([origin(document) + reached, means(document), markdown(head, rows)])


Tables = dict[str, Callable[[Results], str]]
TABLES: Tables = {"summary": summary, "streams": streams, "full": full}
BF16_TABLES: Tables = {"bf16": bf16}
CUDA_TABLES: Tables = {"cuda-summary": cuda_tables.summary, "cuda-full": cuda_tables.full}


def tables_of(document: Results) -> Tables:
    if document["header"]["device"] != "cpu":
        return CUDA_TABLES
    dtypes = {row["dtype"] for row in document["results"]}
    return ({} if dtypes == {"bf16"} else TABLES) | (BF16_TABLES if "bf16" in dtypes else {})


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
