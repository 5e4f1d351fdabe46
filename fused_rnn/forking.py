"""A forked child inherits the thread pool of the thread that forked, but not its threads: OpenMP waits for them forever
(torch's own operators hang in such a child too). So where an op of ours has used the pool, the child goes down to one
thread, as the workers of torch's DataLoader do."""

from __future__ import annotations

import os

import torch

from . import _C

__all__: list[str] = []


def _after_fork_in_child() -> None:
    if _C.used_threads():
        torch.set_num_threads(1)


os.register_at_fork(after_in_child=_after_fork_in_child)
