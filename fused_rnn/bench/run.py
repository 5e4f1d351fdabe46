"""The command: options, and the loop over cases."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..arguments import duration, positive
from . import cases, cuda_cases, cuda_tables, limits, plot, precision, tables
from .cases import Case, Shape
from .gate import Gate
from .header import header, lines
from .memory import Meter, peak_of
from .output import Files, read_prices
from .providers import BASELINE, PROVIDERS, Call, Unsupported, ops_of
from .report import SCHEMA, Row, line
from .timing import Sample, Settings, measure

# No case and no round begins after this: --quick ends within two minutes on CPU and 90 s on CUDA, --grid there in four.
LIMIT_S = {("cpu", "quick"): 90.0, ("cuda", "quick"): 75.0, ("cuda", "grid"): 225.0}
BLOCK_MS = {"cpu": 20.0, "cuda": 12.0}
GAP_MS = {"cpu": 80.0, "cuda": 0.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is measured (default: the shapes of README's table, f32)")
    what.add_argument("--quick", action="store_true", help="few shapes: within two minutes (CUDA: 90 s)")
    what.add_argument("--grid", action="store_true", help="all shapes and dtypes: an hour (CUDA: 4 minutes)")
    what.add_argument("--cell", nargs="+", choices=[*cases.CELLS, "RNN_RELU"], help="only these cells")
    what.add_argument("--mode", nargs="+", choices=cases.MODES, help="only inference or training")
    what.add_argument("--dtype", nargs="+", choices=list(cases.DTYPES), help="only these dtypes")
    what.add_argument(
        "--shapes",
        nargs="+",
        type=shape,
        metavar="T,B,I,H[,layers][,bi][,packed|last]",
        help="these shapes instead",
    )
    what.add_argument("--providers", nargs="+", metavar="NAME", help=f"of: {', '.join(PROVIDERS)} (nn is always there)")
    what.add_argument("--compiled", action="store_true", help="torch.compile of the Python loop too: minutes a case")
    how = parser.add_argument_group("how")
    how.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    how.add_argument("--threads", type=positive, help="torch's threads (default: as torch finds them)")
    how.add_argument("--rounds", type=positive, help="alternating rounds (default 7; --quick and CUDA 5)")
    how.add_argument("--block-ms", type=duration, help="a block has calls for about this long (default 20, CUDA 12)")
    how.add_argument("--gap-ms", type=duration, help="pause before each block (default 80, CUDA 0)")
    how.add_argument(
        "--busy", action="store_true", help="keep every core busy with another process meanwhile, at normal priority"
    )
    how.add_argument("--limit-s", type=duration, help="begin no case after so many seconds")
    how.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    out = parser.add_argument_group("results")
    out.add_argument("--out", type=Path, metavar="FOLDER", help="write results.json and results.png there")
    out.add_argument(
        "--named", action="store_true", help="with --out: named after device and commit instead of results"
    )
    out.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    out.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="write the plot as PNG; with --table: at a glance, of a CUDA device beside it, as ..-cuda",
    )
    out.add_argument(
        "--exchange", type=Path, metavar="FILE", help="what benchmarks/exchange.cu printed, to be kept along"
    )
    out.add_argument("--table", type=Path, metavar="JSON", help="measure nothing: print tables of a results file")
    out.add_argument(
        "--update", nargs="+", type=Path, metavar="FILE", help="with --table: fill the places marked in these"
    )


def size(options: argparse.Namespace) -> str:
    return "quick" if options.quick else "grid" if options.grid else "standard"


def chosen(options: argparse.Namespace) -> list[Case]:
    given = {"cell": options.cell, "mode": options.mode, "dtype": options.dtype}
    if options.device == "cpu" and "tf32" in (options.dtype or ()):
        raise SystemExit("tf32 is a precision of CUDA devices: add --device cuda")
    if options.shapes:
        cells, modes = options.cell or cases.CELLS, options.mode or cases.MODES
        dtypes = options.dtype or ["f32"]
        found = [Case(c, m, d, s) for d in dtypes for s in options.shapes for c in cells for m in modes]
    else:
        every = getattr(cuda_cases if options.device == "cuda" else cases, size(options))()
        found = [case for case in every if all(not some or getattr(case, name) in some for name, some in given.items())]
    return [dataclasses.replace(case, device=options.device) for case in found]


def wanted(options: argparse.Namespace) -> list[str]:
    usual = {"cpu": ["fused", "stream", "onnxruntime", "loop"], "cuda": ["fused", "native"]}[options.device]
    names: list[str] = options.providers or (usual[:-1] if options.quick else usual)
    if unknown := [name for name in names if name not in PROVIDERS]:
        raise SystemExit(f"unknown provider {unknown[0]!r}: choose of {', '.join(PROVIDERS)}")
    names = [name for name in names if name != BASELINE] + (["compiled"] if options.compiled else [])
    return [BASELINE, *dict.fromkeys(names)]


def shape(text: str) -> Shape:
    try:
        return Shape.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def refuse_what_does_nothing(options: argparse.Namespace) -> None:
    """Before minutes are spent measuring."""
    for given, needed in (("update", "table"), ("named", "out")):
        if getattr(options, given) and not getattr(options, needed):
            raise SystemExit(f"fused-rnn bench: --{given} goes with --{needed}")
    for name in ("json", "plot"):
        path = getattr(options, name)
        if path is not None and path.is_dir():
            raise SystemExit(f"fused-rnn bench: --{name} {path} is a folder (--out takes one)")


def settings_for(options: argparse.Namespace) -> Settings:
    device = options.device
    rounds = options.rounds or (5 if options.quick or device == "cuda" else 7)
    block_ms = BLOCK_MS[device] if options.block_ms is None else options.block_ms
    gap_ms = GAP_MS[device] if options.gap_ms is None else options.gap_ms
    seconds = LIMIT_S.get((device, size(options))) if options.limit_s is None else options.limit_s
    deadline = None if seconds is None else time.monotonic() + seconds
    return Settings(rounds, block_ms / 1e3, gap_ms / 1e3, device, deadline=deadline)


def attempt(
    name: str, case: Case, reference: torch.nn.RNNBase, row: Row
) -> tuple[Call, dict[str, torch.Tensor]] | None:
    """A call and its result; None, and the reason in ``row``, where there is none."""
    try:
        call = PROVIDERS[name](case, reference)
        results = call.results()
        if case.device == "cuda":
            torch.cuda.synchronize()  # what a kernel did wrong is told here, or at somebody else's call
        return call, results
    except Unsupported as reason:
        row.status, row.reason = "unsupported", str(reason)
    except Exception as error:  # one provider's failure must not end the run of the others
        failed(row, error)
    return None


def failed(row: Row, error: Exception) -> None:
    row.status, row.reason = "failed", f"{type(error).__name__}: {error}".splitlines()[0]


def lost(case: Case) -> bool:
    """After some errors a CUDA device does nothing more for this process."""
    try:
        if case.device == "cuda":
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def run_case(
    case: Case, names: list[str], settings: Settings, machine: limits.Machine | None, meter: Meter | None
) -> list[Row]:
    with precision.in_force(case.dtype, case.device):
        said = precision.stated(case.dtype, case.device)
        rows = {name: Row(case, name, precision=said) for name in names}
        reference = case.reference()
        built = {name: found for name in names if (found := attempt(name, case, reference, rows[name]))}
        if case.device == "cuda" and BASELINE in built and "aten::_cudnn_rnn" not in ops_of(built[BASELINE][0]):
            rows[BASELINE].precision += " without cuDNN"  # as torch leaves it out, for bf16 before cuDNN 9.13, say
        calls: dict[str, Call] = {}
        try:
            gate = Gate(case, reference, built[BASELINE][1] if BASELINE in built else {})
            for name, (call, results) in built.items():
                verdict = gate.check(results)
                rows[name].error = verdict.error
                if verdict.right:
                    calls[name] = call
                else:
                    rows[name].status, rows[name].reason = "refused", verdict.text
            del built, gate
            for name, call in calls.items() if meter else ():
                if name != "compiled" and meter:  # it would compile again
                    used = peak_of(call, "cuda") if case.device == "cuda" else meter.measure(case, name)
                    rows[name].peak_mb, rows[name].kept_mb = used.get("peak_mb"), used.get("kept_mb")
            samples: dict[str, Sample] = measure(calls, settings)
        except RuntimeError as error:  # of the device; which call was to blame nobody can say any more
            for name in names:
                if rows[name].status == "ok":
                    failed(rows[name], error)
            return list(rows.values())
        for name, sample in samples.items():
            rows[name].take(sample, samples.get(BASELINE), machine)
    return list(rows.values())


@contextlib.contextmanager
def busy_cores(wanted: bool) -> Iterator[None]:
    """As many spinning processes as there are cores: how do the providers do on a machine that is taken?"""
    count = len(os.sched_getaffinity(0)) if wanted else 0
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


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
    todo: list[Case],
    names: list[str],
    options: argparse.Namespace,
    settings: Settings,
    machine: limits.Machine,
    save: Callable[[list[Row]], None],
) -> list[Row]:
    meter = None if options.no_memory else Meter()
    rows: list[Row] = []
    silent: set[tuple[str, str]] = set()
    stop = ""
    print(line(None, cuda=options.device == "cuda"))
    with progress(len(todo)) as bar:
        try:
            for case in todo:
                if bar is not None:
                    bar.set_description(str(case))
                if settings.deadline is not None and time.monotonic() > settings.deadline:
                    stop = stop or "out of time"
                some = [name for name in names if name != "native" or options.providers or cuda_cases.native_pays(case)]
                if stop:
                    new = [Row(case, name, "skipped", stop) for name in some]
                else:
                    new = run_case(case, some, settings, machine, meter)
                    if any(row.status == "failed" for row in new) and lost(case):
                        stop = f"the device was lost at {case}"
                rows += new
                save(rows)
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
    return rows


def run(options: argparse.Namespace) -> int:
    refuse_what_does_nothing(options)
    if options.table:
        try:
            measured = json.loads(options.table.read_text())
        except (OSError, ValueError) as error:
            raise SystemExit(f"fused-rnn bench: --table {options.table}: {error}") from None
        if options.update:
            print("\n".join(tables.update(options.update, measured)))
        if options.plot:
            print(f"{plot.overview(measured, options.plot)}: drawn")
        if not options.update and not options.plot:
            print("\n\n".join(build(measured) for build in tables.tables_of(measured).values()))
        return 0
    if options.threads:
        torch.set_num_threads(options.threads)
    todo, names = chosen(options), wanted(options)
    if not todo:
        raise SystemExit("no case is left: the chosen set has none of these cells, modes and dtypes")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"no CUDA device, or a torch without CUDA ({torch.__version__})")
    facts = header(options.device)
    print("\n".join(lines(facts)), end="\n\n")
    settings = settings_for(options)
    machine = limits.measure({case.dtype for case in todo}, options.device)
    files = Files(options, facts)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "date": datetime.date.today().isoformat(),
        "header": facts,
        "settings": {**dataclasses.asdict(settings), "deadline": None},  # a clock of this process alone
        "limits": dataclasses.asdict(machine),
        "busy": options.busy,
        "results": [],
    }
    if options.exchange:
        document["exchange"] = read_prices(options.exchange)

    def save(rows: list[Row]) -> None:
        document["results"] = [row.as_dict() for row in rows]
        files.save(document)

    with busy_cores(options.busy):
        rows = measure_all(todo, names, options, settings, machine, save)
    if options.device == "cuda":
        print(f"\n{cuda_tables.grounds(document)}\n")
    files.write(document)
    if skipped := {row.case: row.reason for row in rows if row.status == "skipped"}:
        print(f"{len(skipped)} of {len(todo)} cases were not measured: {next(iter(skipped.values()))}")
    ours = [row for row in rows if row.provider == "fused" and row.status in ("refused", "failed")]
    if ours:
        print(f"{len(ours)} of our results were wrong or failed; first: {ours[0].case}: {ours[0].reason}")
    if "fused" in names and not any(row.provider == "fused" and row.status == "ok" for row in rows):
        print("nothing of ours was measured")
        return 1
    return 1 if ours else 0
