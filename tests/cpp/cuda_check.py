"""Compiles the CUDA sources for sm_80 and sm_90a and tells what every kernel uses; needs nvcc, no GPU and no torch.

Fails on a compiler's warning about our code, and on a kernel that keeps registers in memory: all of them are hot, but
for those in `MAY_SPILL`. Kernels of one template with the same figures share a line.

    python3 tests/cpp/cuda_check.py [--jobs 2] [file.cu ...]    NVCC names a compiler other than that in PATH
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("sm_80", "sm_90a")
WIDTH = 39  # of one architecture's figures

# Patterns of kernels' demangled names that may have a stack frame or spill, each with the reason.
MAY_SPILL: dict[str, str] = {}


@dataclass(frozen=True)
class Usage:
    registers: int = 0
    shared: int = 0  # static, bytes; what a launch adds is not known here
    stack: int = 0
    stores: int = 0  # bytes spilled
    loads: int = 0

    @property
    def clean(self) -> bool:
        return not (self.stack or self.stores or self.loads)

    def row(self) -> str:
        return f"{self.registers:>5} {self.shared:>7} {self.stack:>6} {f'{self.stores}/{self.loads}':>12}"


@dataclass
class Compiled:
    source: Path
    seconds: float = 0.0
    failed: bool = False
    complaints: list[str] = field(default_factory=list)
    kernels: dict[tuple[str, str], Usage] = field(default_factory=dict)  # by mangled name and architecture


def flags() -> list[str]:
    """Those of setup.py, which cannot be imported without torch."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "NVCC_FLAGS" for t in node.targets):
            return [str(flag) for flag in ast.literal_eval(node.value)]
    raise SystemExit("setup.py has no list NVCC_FLAGS")


def toolkit(nvcc: str) -> Path:
    plan = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    return Path(top[1].strip() if top else Path(nvcc).parent.parent).resolve()


WARNING = re.compile(r"\bwarning\b", re.IGNORECASE)
# ptxas files this under information: a wgmma that waits for the one before.
SERIALIZED = re.compile(r"Potential Performance Loss")
ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
PROPERTIES = re.compile(r"Function properties for (\S+)")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
MOST_REGISTERS = int(re.search(r"kMaxRegisters = (\d+);", (ROOT / "csrc/cuda/plan.h").read_text())[1])
ALONE = re.compile(r"\bcluster_")  # a block of these has a multiprocessor to itself
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


def read(log: str, result: Compiled, theirs: str) -> None:
    kernel = architecture = function = ""
    frames: dict[str, tuple[int, int, int]] = {}
    for line in log.splitlines():
        if (WARNING.search(line) and not line.startswith((theirs, "Remark:"))) or SERIALIZED.search(line):
            if line.strip() not in result.complaints:  # every architecture's pass tells it again
                result.complaints.append(line.strip())
        if match := ENTRY.search(line):
            kernel, architecture = match.groups()
            frames = {}
        elif match := PROPERTIES.search(line):
            function = match[1]
        elif match := FRAME.search(line):
            frames[function] = (int(match[1]), int(match[2]), int(match[3]))
        elif match := USED.search(line):
            shared = SHARED.search(line)
            # Functions that were not inlined have frames of their own, and are reported with their kernel.
            stack, stores, loads = (
                (sum(values) for values in zip(*frames.values(), strict=True)) if frames else (0, 0, 0)
            )
            usage = Usage(int(match[1]), int(shared[1]) if shared else 0, stack, stores, loads)
            result.kernels[kernel, architecture] = usage


def compile_one(nvcc: str, source: Path, folder: Path, theirs: str) -> Compiled:
    result = Compiled(source)
    target = folder / (re.sub(r"\W", "_", str(source)) + ".o")
    codes = [f"-gencode=arch=compute_{a[3:]},code={a}" for a in ARCHITECTURES]
    command = [nvcc, *flags(), "-Xptxas=-v", "-Xcompiler=-fPIC", *codes, "-c", str(source), "-o", str(target)]
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    result.seconds = time.monotonic() - start
    log = done.stdout + done.stderr
    read(log, result, theirs)
    if done.returncode:
        result.failed = True
        lines = log.strip().splitlines()
        result.complaints = ["\n".join([*lines[:40], *(["..."] if len(lines) > 40 else [])])]
    return result


def demangled(names: list[str], home: Path) -> dict[str, str]:
    tool = next((t for t in (shutil.which(str(home / "bin/cu++filt")), shutil.which("c++filt")) if t), None)
    if not tool or not names:
        return {name: name for name in names}
    plain = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return {name: short(text) for name, text in zip(names, plain.splitlines(), strict=True)}


def short(name: str) -> str:
    """`void fused_rnn::cuda::loop<(int)4, float>(Args)` -> `loop<4, float>`."""
    name = re.sub(r"\((?:unsigned )?(?:int|long|bool|char|short)\)(?=\w)", "", name.removeprefix("void "))
    depth, end = 0, len(name)
    for i in range(len(name) - 1, -1, -1):  # the parameters are the last pair of parentheses
        depth += (name[i] == ")") - (name[i] == "(")
        if name[i] == "(" and depth == 0:
            end = i
            break
    return re.sub(r"(?:\b(?:fused_rnn|cuda)|\(anonymous namespace\))::", "", name[:end] if end else name)


def arguments(name: str) -> tuple[str, list[str]]:
    """A template's name, and its arguments."""
    base, bracket, rest = name.partition("<")
    if not bracket:
        return name, []
    parts, depth = [""], 0
    for char in rest[: rest.rfind(">")]:
        depth += (char in "<(") - (char in ">)")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return base, [part.strip() for part in parts]


def together(names: list[str]) -> str:
    """`loop<4, float>` and `loop<8, float>` -> `loop<4|8, float>  x2`."""
    base, _ = arguments(names[0])
    each = [arguments(name)[1] for name in sorted(set(names))]
    if len({len(a) for a in each}) != 1:
        return f"{base}<...>  x{len(each)}"
    merged = ["|".join(dict.fromkeys(column)) for column in zip(*each, strict=True)]
    inner = f"<{', '.join(merged)}>" if merged else ""
    return f"{base}{inner}" + (f"  x{len(each)}" if len(each) > 1 else "")


def in_memory(name: str, usage: Usage) -> bool:
    return not usage.clean and not any(re.search(pattern, name) for pattern in MAY_SPILL)


def table(result: Compiled, names: dict[str, str]) -> list[str]:
    """One line for kernels of one template whose figures agree for every architecture; a ! before what must not be."""
    figures: dict[str, dict[str, Usage]] = defaultdict(dict)
    for (mangled, architecture), usage in result.kernels.items():
        figures[names[mangled]][architecture] = usage
    groups: dict[tuple[str, str, tuple[str, ...]], list[str]] = defaultdict(list)
    for name, of in figures.items():
        mark = "!" if any(in_memory(name, usage) for usage in of.values()) else " "
        rows = tuple(of[a].row() if a in of else "" for a in ARCHITECTURES)
        groups[arguments(name)[0], mark, rows].append(name)
    return [
        mark + " |".join(f"{row:>{WIDTH}}" for row in rows) + "  " + together(members)
        for (_, mark, rows), members in sorted(groups.items(), key=lambda item: sorted(item[1]))
    ]


def complaints(result: Compiled, names: dict[str, str]) -> list[str]:
    told = [f"{'FAILED' if result.failed else 'WARNING'}: {complaint}" for complaint in result.complaints]
    for architecture in ARCHITECTURES:
        count = sum(in_memory(names[name], use) for (name, a), use in result.kernels.items() if a == architecture)
        if count:
            told.append(f"IN MEMORY: {count} kernels for {architecture} have a stack frame or spill registers")
    over = {
        name
        for (name, _), use in result.kernels.items()
        if use.registers > MOST_REGISTERS and not ALONE.search(names[name])
    }
    if over:
        told.append(f"TOO MANY REGISTERS: {len(over)} kernels take more than plan.h counts on, {MOST_REGISTERS}")
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="default: csrc/cuda/*.cu and benchmarks/*.cu")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()

    files = [file.resolve() for file in options.files]
    files = files or sorted([*ROOT.glob("csrc/cuda/*.cu"), *ROOT.glob("benchmarks/*.cu")])
    if not files:
        print("cuda-check: there are no CUDA sources")
        return 0
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if not nvcc:
        print("cuda-check: no nvcc in PATH; NVCC can name one")
        return 2
    home = toolkit(nvcc)

    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda file: compile_one(nvcc, file, Path(folder), str(home)), files))
    seconds = time.monotonic() - start
    names = demangled(sorted({name for result in results for name, _ in result.kernels}), home)

    print("Registers, and bytes of static shared memory, stack and spills.")
    heads = (f"{architecture} regs    smem  stack  spill st/ld" for architecture in ARCHITECTURES)
    print(" " + " |".join(f"{head:>{WIDTH}}" for head in heads) + "  kernel")
    told = 0
    for result in results:
        shown = result.source.relative_to(ROOT) if result.source.is_relative_to(ROOT) else result.source
        print(f"{shown}: {len({name for name, _ in result.kernels})} kernels, {result.seconds:.0f} s")
        for line in table(result, names):
            print(line)
        for line in complaints(result, names):
            print("  " + line)
            told += 1
    verdict = f"{told} complaints" if told else "clean"
    print(f"cuda-check: {len(names)} kernels of {len(files)} files, {seconds:.0f} s: {verdict}")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
