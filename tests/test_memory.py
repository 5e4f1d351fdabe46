"""Working memory on the CPU is kept from call to call, as far as FUSED_RNN_KEPT_MB allows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = """
import resource, torch, fused_rnn
torch.set_num_threads(1)
lstm, x = fused_rnn.LSTM(512, 512), torch.randn(8, 8, 512)
with torch.no_grad():
    want = lstm(x)[0]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        got = lstm(x)[0]
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
assert torch.equal(got, want)
"""
PAGES_OF_PACKED_WEIGHTS = 2 * 4 * 512 * 512 * 4 // 4096


def faults(**environment):
    """Page faults of four calls, where malloc gives every large block back to the system at once."""
    root = str(Path(__file__).parents[1])
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    run = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env={**os.environ, **malloc, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="counts Linux's page faults under glibc's malloc")
def test_working_memory_is_kept():
    assert faults() < PAGES_OF_PACKED_WEIGHTS  # of all four: their outputs
    for nothing in "0", "-1":
        assert faults(FUSED_RNN_KEPT_MB=nothing) > 4 * PAGES_OF_PACKED_WEIGHTS
