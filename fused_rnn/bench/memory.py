"""Peak memory of one call, beyond what was there before it.

On CPU a counter inside torch's allocator would miss what kernels, oneDNN and ONNX Runtime allocate by themselves, so
the operating system is asked: Linux keeps each process's largest resident size (``VmHWM``) and lets it be reset through
``/proc/self/clear_refs``. The call runs in a process of its own whose malloc gives every block of 64 KB or more back to
the system at once; otherwise memory that an earlier call has freed would be used again without a trace, and timing
under such a malloc would not be what a user sees.

    peak = largest resident size during the second call - resident size just before it

Weights and inputs are there before and do not count; outputs, gradients and everything saved between forward and
backward do. Buffers that a library keeps from the first call on are in ``kept`` instead, but for fused_rnn's working
memory, which is not kept here and counts in the peak. The system counts in steps of up to some hundred KB: below a
megabyte take the numbers as "little".

On CUDA torch's allocator counts, in the benchmark's own process: cuDNN's work space and ours come from it too.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from .cases import Case
from .providers import PROVIDERS, Call

MB = 1e6
BLOCK = 64 * 1024
# glibc reads these at start: blocks of this size come from and go to the system directly, at any time; and so do ours.
NOTHING_KEPT = {
    "MALLOC_MMAP_THRESHOLD_": str(BLOCK),
    "MALLOC_TRIM_THRESHOLD_": str(BLOCK),
    "MALLOC_TOP_PAD_": "0",
    "FUSED_RNN_KEPT_MB": "0",
}
PR_SET_THP_DISABLE = 41  # huge pages would round every buffer up to 2 MB


def resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (largest since the reset) in bytes."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")


def peak_of(call: Call, device: str) -> dict[str, float]:
    """Peak and kept memory of a call in MB; on CPU, run it in the process that ``Meter`` starts."""
    if device == "cuda":
        call()
        call.release()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        call.release()
        return {"peak_mb": peak / MB}
    start = resident("VmRSS")
    call()
    call.release()
    gc.collect()
    before = resident("VmRSS")
    reset_peak()
    call()
    return {"peak_mb": max(0.0, (resident("VmHWM") - before) / MB), "kept_mb": max(0.0, (before - start) / MB)}


def serve() -> None:
    """The measuring process: a case and a provider a line on stdin, an answer a line on stdout."""
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    for line in sys.stdin:
        request = json.loads(line)
        torch.set_num_threads(request["threads"])
        case = Case.from_dict(request["case"])
        try:
            answer: dict[str, Any] = peak_of(PROVIDERS[request["provider"]](case, case.reference()), case.device)
        except Exception as error:  # whatever a provider raises is the parent's to report
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


class Meter:
    """Starts the measuring process when first asked, and again should a case have killed it. CPU cases only."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        return subprocess.Popen(
            [sys.executable, "-c", "from fused_rnn.bench.memory import serve; serve()"],
            env={**os.environ, **NOTHING_KEPT, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def measure(self, case: Case, provider: str) -> dict[str, Any]:
        if self.process is None or self.process.poll() is not None:
            self.process = self.start()
        request = {"case": case.as_dict(), "provider": provider, "threads": torch.get_num_threads()}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            self.close()
            return {"error": "the measuring process died"}
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None
