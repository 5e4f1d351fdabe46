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
    """Of the checkout this runs from, with ``+`` when its sources were changed since; else of the build."""

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
    return built().get("commit")


def library(name: str, pattern: str) -> str | None:
    found = re.search(pattern, torch.__config__.show())
    return found.group(1) if found else None


def precision(device: str) -> str:
    """How f32 products are really computed."""
    matmul = torch.get_float32_matmul_precision()
    if device != "cuda":
        return f"f32 products in full f32 (float32_matmul_precision {matmul!r})"
    rnn = getattr(torch.backends.cudnn, "rnn", None)
    mode = getattr(rnn, "fp32_precision", None) or ("tf32" if torch.backends.cudnn.allow_tf32 else "ieee")
    said = "nn.* f32 on CUDA computes in TF32, torch's default" if mode == "tf32" else f"nn.* f32 on CUDA: {mode}"
    return f"{said} (cudnn.rnn.fp32_precision {mode!r}, float32_matmul_precision {matmul!r})"


def header(device: str) -> dict[str, Any]:
    ours = built()
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name(0) if device == "cuda" else "cpu",
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
        "precision": precision(device),
        "load": round(os.getloadavg()[0], 1),  # of the last minute, before the measuring
    }
    if device == "cuda":
        facts["CUDA"], facts["cuDNN"] = torch.version.cuda, torch.backends.cudnn.version()
    return facts


def lines(facts: dict[str, Any]) -> list[str]:
    """For a terminal, several facts a line."""
    rows = [
        ("device", "cpu", "threads", "system"),
        ("torch", "oneDNN", "MKL", "CUDA", "cuDNN", "torch ISA", "onnxruntime", "python"),
        ("fused_rnn", "commit", "ISA", "compiler", "built with torch"),
        ("precision",),
    ]
    said = ([f"{name} {facts[name]}" for name in row if facts.get(name) is not None] for row in rows)
    text = ["  ".join(words) for words in said if words]
    if facts["load"] > 0.7:
        text.append(f"WARNING: other work was running (load {facts['load']}); expect noise, not figures")
    return text
