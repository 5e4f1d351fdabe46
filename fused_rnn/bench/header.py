"""Where, with what and in which precision it was measured."""

from __future__ import annotations

import importlib
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import precision

PACKAGE = Path(__file__).parents[1]


def cpu_model() -> str:
    try:
        names = re.findall(r"^(?:model name|Model)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def built() -> dict[str, Any]:
    """What the extension says of itself; empty where it is not built."""
    try:
        extension = importlib.import_module("fused_rnn._C")
    except ImportError:
        return {}
    return {**extension.build_info(), "isa": extension.cpu_isa(), "isas": list(extension.cpu_isas())}


def commit() -> str | None:
    """Of the checkout this runs from, with ``+`` when its sources were changed since; of a copy without its history,
    what ``FUSED_RNN_COMMIT`` says; else of the build."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(PACKAGE), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        top = Path(git("rev-parse", "--show-toplevel"))
        if top == PACKAGE.parent:  # not some other checkout that an environment happens to lie in
            changed = git(
                "status", "--porcelain", "--untracked-files=no", "--", "fused_rnn", "csrc", ":/fused_rnn", ":/csrc"
            )
            return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        pass
    return os.environ.get("FUSED_RNN_COMMIT") or built().get("commit")


def library(name: str, pattern: str) -> str | None:
    found = re.search(pattern, torch.__config__.show())
    return found.group(1) if found else None


def driver() -> str | None:
    """NVIDIA's version of the driver (torch knows only the CUDA version that it serves)."""
    asked = ["nvidia-smi", "--id=0", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=20)
        if said.returncode == 0 and said.stdout.strip():
            return said.stdout.split()[0]
        found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", Path("/proc/driver/nvidia/version").read_text())
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.group(0) if found else None


def cudnn() -> str | None:
    number = torch.backends.cudnn.version()  # 9.10.2 is 91002, 8.9.7 is 8907
    if number is None:
        return None
    major = 10_000 if number >= 90_000 else 1_000
    return f"{number // major}.{number % major // 100}.{number % 100}"


def gpu() -> dict[str, Any]:
    chip = torch.cuda.get_device_properties(0)
    return {
        "device": chip.name,
        "capability": f"{chip.major}.{chip.minor}",
        "multiprocessors": chip.multi_processor_count,
        "device GB": round(chip.total_memory / 1e9),
        "driver": driver(),
        "CUDA": torch.version.cuda,
        "cuDNN": cudnn(),
    }


def file_name(facts: dict[str, Any]) -> str:
    """For files: device and commit, such as h200-1a2b3c4 or cpu-2core-1a2b3c4."""
    device = f"cpu {facts['threads']}core" if facts["device"] == "cpu" else facts["device"].lower()
    words = re.sub(r"[^a-z0-9]+", "-", device.removeprefix("nvidia ")).strip("-")
    return f"{words}-{(facts['commit'] or 'unknown').replace('+', '-changed')}"


def header(device: str) -> dict[str, Any]:
    ours = built()
    facts: dict[str, Any] = {
        "device": "cpu",
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "oneDNN": library("oneDNN", r"MKL-DNN v([\d.]+)"),
        "MKL": library("MKL", r"Math Kernel Library Version ([\d.]+)"),
        "torch ISA": torch.backends.cpu.get_cpu_capability(),
        "fused_rnn": version("fused-rnn") or "source checkout",
        "commit": commit(),
        "ISA": ours.get("isa"),
        "compiler": ours.get("compiler"),
        "built with torch": ours.get("torch"),
        "onnxruntime": version("onnxruntime"),
        "precision": precision.told(device),
        "load": round(os.getloadavg()[0], 1),  # of the last minute, before the measuring
    }
    return {**facts, **gpu()} if device == "cuda" else facts


def lines(facts: dict[str, Any]) -> list[str]:
    """For a terminal, several facts a line."""
    chip = ("device", "capability", "multiprocessors", "device GB", "driver", "CUDA", "cuDNN")
    host = ("cpu", "threads", "system")
    rows = [
        *([("device", *host)] if facts["device"] == "cpu" else [chip, host]),
        ("torch", "oneDNN", "MKL", "torch ISA", "onnxruntime", "python"),
        ("fused_rnn", "commit", "ISA", "compiler", "built with torch"),
        ("precision",),
    ]
    said = ([f"{name} {facts[name]}" for name in row if facts.get(name) is not None] for row in rows)
    text = ["  ".join(words) for words in said if words]
    if facts["load"] > (0.7 if facts["device"] == "cpu" else (os.cpu_count() or 1) / 2):
        text.append(f"WARNING: other work was running (load {facts['load']}); expect noise, not figures")
    return text
