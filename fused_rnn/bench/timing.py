"""Blocks of calls, alternating between the providers of one case in one process.

Two libraries in one process disturb each other: their threads go on spinning for a while after a call and take cores
from the next library. So before each block there is a gap long enough for them to sleep, and one untimed call that
wakes the block's own threads. A block is as many calls as fill the target time. Rounds alternate, each in the reverse
order of the one before, so that a drift of the machine's speed meets all providers alike. Reported are the median of a
provider's blocks, and as ratio the median of the baseline's over it; their spread comes from single rounds.

On CUDA a block lies between two events and needs no gap: nothing of the last one runs on once the device is idle. What
the host pays for a call is measured apart, as the time from an idle device until the call returns.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Mapping

import torch


@dataclasses.dataclass(frozen=True)
class Settings:
    rounds: int = 7
    block_s: float = 0.02
    gap_s: float = 0.08
    device: str = "cpu"
    host_calls: int = 3  # CUDA
    deadline: float | None = None  # time.monotonic() after which no further round begins


@dataclasses.dataclass
class Sample:
    """Seconds a call in each block, in the order of the rounds."""

    first_s: float  # the very first call: loading, compiling, tuning
    calls: int  # in a block
    blocks: list[float] = dataclasses.field(default_factory=list)
    host_s: float | None = None  # until a call returns, on CUDA

    @property
    def median(self) -> float:
        return statistics.median(self.blocks)


def quantiles(values: list[float]) -> tuple[float, float]:
    """The 20th and 80th percentile."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[round(0.2 * last)], ordered[round(0.8 * last)]


def block(call: Callable[[], object], calls: int, device: str) -> float:
    """Seconds for ``calls`` calls."""
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - begin


def until_it_returns(call: Callable[[], object], calls: int) -> float:
    """Median seconds for which a call keeps the host, the device being idle when it begins."""
    found = []
    for _ in range(calls):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    torch.cuda.synchronize()
    return statistics.median(found)


def calls_for(call: Callable[[], object], settings: Settings) -> int:
    """How many calls fill a block, found by doubling: a single call is too short to be measured alone."""
    calls = 1
    while True:
        took = block(call, calls, settings.device)
        if took >= settings.block_s / 2:
            return max(1, round(calls * settings.block_s / took))
        calls = max(2 * calls, int(calls * settings.block_s / max(took, 1e-7) / 2))


def measure(
    providers: Mapping[str, Callable[[], object]],
    settings: Settings,
) -> dict[str, Sample]:
    samples: dict[str, Sample] = {}
    for name, call in providers.items():
        first = block(call, 1, settings.device)
        samples[name] = Sample(first, calls_for(call, settings))
        if settings.device == "cuda":
            samples[name].host_s = until_it_returns(call, settings.host_calls)
    order = list(providers)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection in the middle of a block would be somebody else's work
    try:
        for done in range(settings.rounds):
            if done and settings.deadline is not None and time.monotonic() > settings.deadline:
                break
            for name in order:
                time.sleep(settings.gap_s)
                call = providers[name]
                call()
                sample = samples[name]
                sample.blocks.append(block(call, sample.calls, settings.device) / sample.calls)
            order.reverse()
    finally:
        if collecting:
            gc.enable()
    return samples
