"""The command: options, the loop over cases, and what is written."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from . import cases, limits, plot, tables
from .cases import Case, Shape
from .gate import Gate
from .header import header, lines
from .memory import Meter
from .providers import BASELINE, PROVIDERS, Call, Unsupported
from .report import SCHEMA, Row, line
from .timing import Sample, Settings, measure

QUICK_S = 90.0  # --quick starts no case and no round after this, to end within two minutes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is measured (default: the shapes of README's table, f32)")
    what.add_argument("--quick", action="store_true", help="few shapes, ends within two minutes on two cores")
    what.add_argument("--grid", action="store_true", help="large shapes and all dtypes too (half an hour)")
    what.add_argument("--cell", nargs="+", choices=[*cases.CELLS, "RNN_RELU"], help="only these cells")
    what.add_argument("--mode", nargs="+", choices=cases.MODES, help="only inference or training")
    what.add_argument("--dtype", nargs="+", choices=list(cases.DTYPES), help="only these dtypes")
    what.add_argument(
        "--shapes", nargs="+", type=Shape.parse, metavar="T,B,I,H[,layers][,bi][,packed]", help="these shapes instead"
    )
    what.add_argument("--providers", nargs="+", metavar="NAME", help=f"of: {', '.join(PROVIDERS)} (nn is always there)")
    what.add_argument("--compiled", action="store_true", help="torch.compile of the Python loop too: minutes a case")
    how = parser.add_argument_group("how")
    how.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    how.add_argument("--threads", type=int, help="torch's threads (default: as torch finds them)")
    how.add_argument("--rounds", type=int, help="alternating rounds (default 7, --quick 5)")
    how.add_argument("--block-ms", type=float, default=20.0, help="a block has calls for about this long")
    how.add_argument("--gap-ms", type=float, default=80.0, help="pause before each block")
    how.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    out = parser.add_argument_group("results")
    out.add_argument("--out", type=Path, metavar="FOLDER", help="write results.json and results.png there")
    out.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    out.add_argument("--plot", type=Path, metavar="FILE", help="write the plot as PNG")
    out.add_argument("--table", type=Path, metavar="JSON", help="measure nothing: print tables of a results file")
    out.add_argument(
        "--update", nargs="+", type=Path, metavar="FILE", help="with --table: fill the places marked in these"
    )


def chosen(options: argparse.Namespace) -> list[Case]:
    given = {"cell": options.cell, "mode": options.mode, "dtype": options.dtype}
    if options.shapes:
        cells, modes = options.cell or cases.CELLS, options.mode or cases.MODES
        dtypes = options.dtype or ["f32"]
        found = [Case(c, m, d, s) for d in dtypes for s in options.shapes for c in cells for m in modes]
    else:
        every = cases.quick() if options.quick else cases.grid() if options.grid else cases.standard()
        found = [case for case in every if all(not some or getattr(case, name) in some for name, some in given.items())]
    return [dataclasses.replace(case, device=options.device) for case in found]


def wanted(options: argparse.Namespace) -> list[str]:
    names: list[str] = options.providers or ["fused", "onnxruntime", *([] if options.quick else ["loop"])]
    if unknown := [name for name in names if name not in PROVIDERS]:
        raise SystemExit(f"unknown provider {unknown[0]!r}: choose of {', '.join(PROVIDERS)}")
    names = [name for name in names if name != BASELINE] + (["compiled"] if options.compiled else [])
    return [BASELINE, *dict.fromkeys(names)]


def attempt(
    name: str, case: Case, reference: torch.nn.RNNBase, row: Row
) -> tuple[Call, dict[str, torch.Tensor]] | None:
    """A call and its result; None, and the reason in ``row``, where there is none."""
    try:
        call = PROVIDERS[name](case, reference)
        return call, call.results()
    except Unsupported as reason:
        row.status, row.reason = "unsupported", str(reason)
    except Exception as error:  # one provider's failure must not end the run of the others
        row.status, row.reason = "failed", f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def run_case(
    case: Case, names: list[str], settings: Settings, machine: limits.Machine | None, meter: Meter | None
) -> list[Row]:
    reference = case.reference()
    rows = {name: Row(case, name) for name in names}
    built = {name: found for name in names if (found := attempt(name, case, reference, rows[name]))}
    gate = Gate(case, reference, built[BASELINE][1] if BASELINE in built else {})
    calls: dict[str, Call] = {}
    for name, (call, results) in built.items():
        verdict = gate.check(results)
        rows[name].error = verdict.error
        if verdict.right:
            calls[name] = call
        else:
            rows[name].status, rows[name].reason = "refused", verdict.text
    del built, gate
    for name in calls if meter else ():
        if name != "compiled" and meter:  # it would compile again
            used = meter.measure(case, name)
            rows[name].peak_mb, rows[name].kept_mb = used.get("peak_mb"), used.get("kept_mb")
    samples: dict[str, Sample] = measure(calls, settings)
    for name, sample in samples.items():
        rows[name].take(sample, samples.get(BASELINE), machine)
    return list(rows.values())


@contextlib.contextmanager
def progress(total: int) -> Iterator[Any]:
    """A bar on stderr while rows go to stdout; only the rows without tqdm, or where stderr is not a terminal."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield None
        return
    with tqdm(total=total, unit="case", file=sys.stderr, dynamic_ncols=True, leave=False, disable=None) as bar:
        yield bar


def say(bar: Any, text: str) -> None:
    if bar is None:
        print(text, flush=True)
    else:
        bar.write(text, file=sys.stdout)
        sys.stdout.flush()


def measure_all(
    todo: list[Case], names: list[str], options: argparse.Namespace, settings: Settings
) -> tuple[Any, list[Row]]:
    deadline = time.monotonic() + QUICK_S if options.quick else None
    settings = dataclasses.replace(settings, deadline=deadline)
    machine = limits.measure({case.dtype for case in todo}, options.device)
    meter = None if options.no_memory else Meter()
    rows: list[Row] = []
    silent: set[tuple[str, str]] = set()
    print(line(None))
    with progress(len(todo)) as bar:
        try:
            for case in todo:
                if bar is not None:
                    bar.set_description(str(case))
                if deadline is not None and time.monotonic() > deadline:
                    new = [Row(case, name, "skipped", "out of time") for name in names]
                else:
                    new = run_case(case, names, settings, machine, meter)
                rows += new
                for row in new:
                    told = (row.provider, row.reason)
                    if told not in silent:
                        say(bar, line(row))
                    if row.status in ("unsupported", "skipped"):  # the same reason once
                        silent.add(told)
                if bar is not None:
                    bar.update()
        finally:
            if meter:
                meter.close()
    return machine, rows


def write(document: dict[str, Any], options: argparse.Namespace) -> None:
    files: list[tuple[str, Path]] = []
    if options.out:
        files += [("json", options.out / "results.json"), ("plot", options.out / "results.png")]
    files += [("json", options.json)] if options.json else []
    files += [("plot", options.plot)] if options.plot else []
    for kind, path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "json":
            path.write_text(json.dumps(document, indent=1) + "\n")
        else:
            try:
                plot.draw(document, path)
            except ImportError:
                print(f"no {path}: the plot needs matplotlib (pip install matplotlib, or the extra 'bench')")
                continue
        print(f"wrote {path}")


def run(options: argparse.Namespace) -> int:
    if options.table:
        document = json.loads(options.table.read_text())
        if options.update:
            print("\n".join(tables.update(options.update, document)))
        else:
            print("\n\n".join(build(document) for build in tables.TABLES.values()))
        return 0
    if options.threads:
        torch.set_num_threads(options.threads)
    todo, names = chosen(options), wanted(options)
    if not todo:
        raise SystemExit("no case is left: the chosen set has none of these cells, modes and dtypes")
    rounds = options.rounds or (5 if options.quick else 7)
    settings = Settings(rounds, options.block_ms / 1e3, options.gap_ms / 1e3, options.device)
    facts = header(options.device)
    print("\n".join(lines(facts)), end="\n\n")
    machine, rows = measure_all(todo, names, options, settings)
    document = {
        "schema": SCHEMA,
        "date": datetime.date.today().isoformat(),
        "header": facts,
        "settings": dataclasses.asdict(settings),
        "limits": dataclasses.asdict(machine),
        "results": [row.as_dict() for row in rows],
    }
    write(document, options)
    if skipped := {row.case for row in rows if row.status == "skipped"}:
        print(f"{len(skipped)} of {len(todo)} cases were not measured: the machine was too slow for --quick")
    ours = [row for row in rows if row.provider == "fused" and row.status in ("refused", "failed")]
    if ours:
        print(f"{len(ours)} of our results were wrong or failed; first: {ours[0].case}: {ours[0].reason}")
    return 1 if ours else 0
