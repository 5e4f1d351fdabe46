"""The CUDA kernels in place of the CPU's, run on the host (``pytest --kernels=cuda-on-host``): their own source over
the device of tests/simt, which plays a GPU with fibers for threads. So the suite runs on them where there is no GPU.

``FUSED_RNN_CUDA_LIMITS`` makes that device smaller still, and so other plans. It has clusters for test_clusters.py
alone: elsewhere the loops of all devices run.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import torch
from torch.utils import cpp_extension

from fused_rnn import ops, stack

ROOT = Path(__file__).parents[1]
OPS = ("layer_forward", "layer_backward", "layer_backward_gates")


def build() -> None:
    """Compiles what has changed, and loads it."""
    folder = ROOT / "build" / "cuda-on-host"
    folder.mkdir(parents=True, exist_ok=True)
    sources = ["tests/simt/library.cpp", "csrc/torch/layer.cpp"]
    sources += [f"csrc/cuda/{name}.cpp" for name in ("plan", "cluster_plan", "limits")]
    sources += [f"csrc/torch/cuda_{name}.cpp" for name in ("forward", "backward")]
    with open(folder / "building", "w") as building:
        # Of several processes one compiles. torch's own lock is a file that a killed build leaves behind, and that
        # is then waited for without an end; this one goes with its holder.
        fcntl.flock(building, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        cpp_extension.load(
            "fused_rnn_host",
            [str(ROOT / source) for source in sources],
            build_directory=str(folder),
            is_python_module=False,
            # Without -O3: it takes four times as long to compile, and hardly less to run. Nor fortified, as compilers
            # of some systems have it by themselves: that forbids jumps from one fiber's stack to another's.
            extra_cflags=[
                *("-std=c++20", "-O1", "-U_FORTIFY_SOURCE", "-fvisibility=hidden"),
                "-DTORCH_TARGET_VERSION=0x020A000000000000",
            ],
        )


def use() -> None:
    """Every later call of an op goes there."""
    build()
    os.environ.setdefault("FUSED_RNN_CUDA_LIMITS", "clusters=0")
    stack.layers_at_once = lambda *_: None  # an op of the CPU alone
    for name in OPS:
        ours = getattr(torch.ops.fused_rnn, name).default
        host = getattr(torch.ops.fused_rnn_host, name).default
        torch.library.register_fake(f"fused_rnn_host::{name}", _fake(ours))
        setattr(ops, f"_{name}", host)


def _fake(op):
    def fake(*args):
        return op(*args)  # on meta tensors: the shapes that it was given

    return fake
