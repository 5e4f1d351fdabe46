"""`make gpu` (benchmarks/gpu.sh) with every tool acted: what runs, what a failure does, what is said at the end."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import sanitize_cuda

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="it acts the device"),
    pytest.mark.skipif(not shutil.which("timeout"), reason="needs bash and coreutils"),
]

# A python, an nvcc and a compute-sanitizer: each notes its call, and fails or hangs where the test says so.
PYTHON = """#!/usr/bin/env bash
echo "python ${*//$'\\n'/ } arch=${TORCH_CUDA_ARCH_LIST:-} cuda=${FUSED_RNN_CUDA:-}" >>calls
case "$*" in
    "-c "*) [ -n "${NO_GPU:-}" ] && echo "no CUDA device" >&2 && exit 1; echo "9.0|NVIDIA X1|torch 2.99, CUDA 13|$0" ;;
    *build_ext*) exit "${BUILD:-0}" ;;
    "-m pytest"*) [ -n "${HANG:-}" ] && sleep 30; echo "5 passed, 1 skipped in 2s"; exit "${SUITE:-0}" ;;
    *sanitize_cuda*) echo "128 of 128 cases ran" ;;
    "-m benchmarks "*) printf '\\n| ground | precision |\\n| --- | --- |\\n| open ground | bf16 |\\n\\nwrote x\\n' ;;
esac
"""
NVCC = """#!/usr/bin/env bash
echo "nvcc $*" >>calls
printf '#!/bin/sh\\necho "one price"\\n' >"${@: -1}" && chmod +x "${@: -1}"
"""
SANITIZER = """#!/usr/bin/env bash
echo "compute-sanitizer $*" >>calls
case "${SANITIZER:-}" in
    refuses) echo "========= Error: Device not supported. Please refer to the list"; exit 1 ;;
    finds) echo "========= ERROR SUMMARY: 3 errors"; exit 86 ;;
esac
while [ "${1#-}" != "$1" ]; do shift 2; done
exec "$@"
"""


@pytest.fixture
def script(tmp_path):
    """A folder with the script and the acted tools; call it with environment variables."""
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks/gpu.sh", tmp_path / "benchmarks")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {"python3": PYTHON, "nvcc": NVCC, "compute-sanitizer": SANITIZER}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def call(**variables):
        known = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "TMPDIR")}
        path = f"{tools}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "benchmarks/gpu.sh"],
            env={**known, "PATH": path, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        calls = tmp_path / "calls"
        return done, calls.read_text().splitlines() if calls.exists() else []

    return call


def test_all_parts(script, tmp_path):
    done, calls = script()
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out/gpu"
    logs = {f"{name}.log" for name in ("build", "test", "sanitize", "exchange", "bench")}
    assert {path.name for path in out.iterdir()} == {*logs, "summary.txt"}
    assert "python setup.py build_ext --inplace arch=9.0a cuda=1" in calls
    assert any(call.startswith("python -m pytest --device=cuda") and "-n 8 tests" in call for call in calls)
    tools = [call.split()[2] for call in calls if call.startswith("compute-sanitizer")]
    assert tools == ["memcheck", "racecheck", "synccheck"]
    assert any("compute_90a,code=sm_90a benchmarks/exchange.cu" in call for call in calls)
    (bench,) = [call for call in calls if call.startswith("python -m benchmarks --device cuda")]
    assert f"--grid --limit-s 225 --out {out} --named --exchange {out}/exchange.log" in bench
    summary = (out / "summary.txt").read_text()
    assert summary in done.stdout
    assert "NVIDIA X1, compute capability 9.0; torch 2.99, CUDA 13" in summary
    assert "5 passed, 1 skipped" in summary
    assert "VERDICT: racecheck found nothing; 128 of 128 cases ran" in summary
    assert "| open ground | bf16 |" in summary
    assert "wrote x" not in summary
    assert summary.endswith("all is well\n")


def test_a_failure_is_remembered_and_the_rest_runs(script, tmp_path):
    done, calls = script(SUITE="1", OUT_DIR=str(tmp_path / "elsewhere"))
    assert done.returncode == 1
    assert any(call.startswith("python -m benchmarks --device cuda") for call in calls)
    summary = (tmp_path / "elsewhere/summary.txt").read_text()
    assert "test      failed (1)" in summary
    assert "bench     ok" in summary
    assert "SOMETHING FAILED" in summary


def test_what_was_not_built_is_not_run(script, tmp_path):
    done, calls = script(BUILD="1")
    assert done.returncode == 1
    assert not any("pytest" in call or "sanitize" in call or "-m benchmarks" in call for call in calls)
    assert any(call.startswith("nvcc") for call in calls)  # it needs nothing of ours
    assert "bench     not run: the build did not succeed" in done.stdout


def test_a_sanitizer_that_refuses_the_device_is_no_failure(script):
    done, _ = script(SANITIZER="refuses", PARTS="sanitize")
    assert done.returncode == 0
    assert done.stdout.count("VERDICT: memcheck refused this device") == 2  # as it happens, and in the summary
    assert "sanitize  refused" in done.stdout


def test_a_sanitizer_that_finds_something(script):
    done, _ = script(SANITIZER="finds", PARTS="sanitize")
    assert done.returncode == 1
    assert "VERDICT: synccheck failed: errors found; ========= ERROR SUMMARY: 3 errors" in done.stdout


def test_a_part_that_hangs_is_ended(script):
    done, _ = script(HANG="1", PARTS="test bench", LIMIT_S="112")  # of which 110 are the benchmark's
    assert done.returncode == 1
    assert "test      out of time" in done.stdout
    assert "bench     ok" in done.stdout


def test_no_device(script):
    done, calls = script(NO_GPU="1")
    assert done.returncode == 1
    assert "no CUDA device" in done.stderr
    assert len(calls) == 1


def test_unknown_part(script):
    done, calls = script(PARTS="build everything")
    assert done.returncode == 2
    assert not calls


def test_what_the_sanitizers_watch(monkeypatch, capsys):
    """Every case of it on the CPU."""
    monkeypatch.setenv("FUSED_RNN_CUDA_LIMITS", "")  # put back at the end
    assert sanitize_cuda.main(["--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "192 of 192 cases ran" in said
    assert "LSTM projection torch.bfloat16 cooperative=0" in said
    assert sanitize_cuda.main(["--device", "cpu", "--limit-s", "0"]) == 1


def test_tests_that_are_too_late():
    """They are skipped, and the run is no success."""
    late = {**os.environ, "FUSED_RNN_TESTS_UNTIL": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_layering.py", "-k", "native"]
    done = subprocess.run(command, env=late, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 124
    assert "out of time" in done.stdout
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
