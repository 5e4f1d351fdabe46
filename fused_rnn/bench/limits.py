"""What the machine could do, to say how far a result is from it.

    limit  = max(flops / gemm_rate, bytes / bandwidth)          share = limit / measured time

**Flops.** Only matrix products count. ``N`` is the number of rows of the whole sequence (T*B, or the sum of lengths),
``I_l`` the input features of layer l (I, then D*H), ``D`` directions, ``G`` gates (LSTM 4, GRU 3, RNN 1). The first
step of each sequence multiplies no state: the calls are given none, so it is zero, and nobody asks for its gradient.

    forward  = sum over layers of  D * 2 * G*H * (N * I_l + (N - B) * H)
    training = 3 * forward         (the gradients of inputs and of weights are a product each, of the same size)

``gemm_rate`` is what ``torch.mm`` of two 1024 x 1024 matrices (CUDA: 8192 x 8192) reaches in the case's dtype with the
threads in force.

**Bytes.** Every later step reads the recurrent weights anew, since h of one step makes the next; input weights are read
once.

    forward  = sum over layers of  D * ((T - 1) * G*H*H + G*H*I_l) * bytes of an element
    training = 2 * forward         (the backward loop reads the transposed weights once a step)

``bandwidth`` is that of the nearest level which holds one core's share of one layer's recurrent weights: none is
counted in L1 (there the products are the limit), then L2, then past L2. BLAS products that
read so many bytes measure it, less the cost of a call. On a GPU the levels are the
multiprocessors' shared memory, the L2 cache and the device memory.

Not counted are activations and the waiting of one step for another: small shapes, where a step is mere latency, have
low shares however good the code is. A level may be generous too: weights near the size of a cache do not all stay.
"""

from __future__ import annotations

import dataclasses
import glob
import time
from collections.abc import Callable
from pathlib import Path

import torch

from . import precision
from .cases import DTYPES, Case

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "RNN_RELU": 1}
KIB = 1024


def work(case: Case) -> tuple[float, float, float]:
    """Flops, bytes, and the bytes of one layer's recurrent weights."""
    shape = case.shape
    rows, gates = sum(shape.lengths()), GATES[case.cell] * shape.H
    size = DTYPES[case.dtype].itemsize
    flops = moved = 0.0
    for layer in range(shape.layers):
        features = shape.I if layer == 0 else shape.directions * shape.H
        flops += shape.directions * 2 * gates * (rows * features + (rows - shape.B) * shape.H)
        moved += shape.directions * gates * ((shape.T - 1) * shape.H + features) * size
    resident = float(shape.directions * gates * shape.H * size)
    return (3 * flops, 2 * moved, resident) if case.training else (flops, moved, resident)


@dataclasses.dataclass
class Machine:
    """Measured rates, of all threads together; cache sizes are of one core (CUDA: of the device)."""

    threads: int
    gemm: dict[str, float]  # flops a second by dtype
    l1_bytes: int
    l2_bytes: int
    l2_bandwidth: float  # bytes a second
    far_bandwidth: float  # past L2

    def limit_s(self, case: Case) -> float:
        flops, moved, resident = work(case)
        share = resident / self.threads
        if share <= self.l1_bytes:
            transfer = 0.0
        else:
            transfer = moved / (self.l2_bandwidth if share <= self.l2_bytes else self.far_bandwidth)
        return max(flops / self.gemm[case.dtype], transfer)


def seconds(call: Callable[[], object], device: str, budget_s: float = 0.03) -> float:
    """The best of several blocks: what is asked is what the machine can do, not what it does while others use it."""
    from .timing import Settings, block, calls_for

    call()
    calls = calls_for(call, Settings(block_s=budget_s / 5, device=device))
    return min(block(call, calls, device) for _ in range(5)) / calls


def gemm_rate(dtype: str, device: str) -> float:
    n = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device).to(DTYPES[dtype]) for _ in range(2))
    out = torch.empty_like(a)
    with precision.in_force(dtype, device):
        return 2.0 * n**3 / seconds(lambda: torch.mm(a, b, out=out), device, 0.1)


def bandwidth(size: int, device: str) -> float:
    """Bytes a second at which BLAS reads f32 memory of ``size`` bytes: the better of a dot product and a product of
    matrix and vector (some libraries run the one, some the other at less than what the cache gives)."""

    def took(elements: int) -> float:
        data = torch.randn(max(elements, 1024), device=device)
        left, right = data.chunk(2)
        matrix, vector = data.view(-1, 512), torch.randn(512, device=device)
        out = torch.empty(matrix.shape[0], device=device)
        return min(
            seconds(lambda: torch.dot(left, right), device), seconds(lambda: torch.mv(matrix, vector, out=out), device)
        )

    cost_of_a_call, whole = took(0), took(size // 4)
    return size / (whole - min(cost_of_a_call, 0.3 * whole))


def caches() -> tuple[int, int]:
    """L1 data and L2 of the first core, in bytes."""
    found = {1: 32 * KIB, 2: 512 * KIB}
    for folder in glob.glob("/sys/devices/system/cpu/cpu0/cache/index*"):
        try:
            level, kind, size = (Path(folder, name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction" and int(level) in found and size.endswith("K"):
            found[int(level)] = int(size[:-1]) * KIB
    return found[1], found[2]


def measure(dtypes: set[str], device: str) -> Machine:
    gemm = {dtype: gemm_rate(dtype, device) for dtype in sorted(dtypes)}
    if device == "cuda":
        chip = torch.cuda.get_device_properties(0)
        near = chip.shared_memory_per_multiprocessor * chip.multi_processor_count
        l2 = bandwidth(chip.L2_cache_size // 2, device)
        far = bandwidth(16 * chip.L2_cache_size, device)
        return Machine(1, gemm, near, chip.L2_cache_size, l2, far)
    l1, l2_bytes = caches()
    threads = torch.get_num_threads()
    time.sleep(0.08)  # the products' threads still spin
    torch.set_num_threads(1)
    try:
        near_rate = bandwidth(l2_bytes // 2, device) * threads  # L2 is each core's own
    finally:
        torch.set_num_threads(threads)
    far_rate = bandwidth(16 * l2_bytes * threads, device)
    return Machine(threads, gemm, l1, l2_bytes, max(near_rate, far_rate), far_rate)
