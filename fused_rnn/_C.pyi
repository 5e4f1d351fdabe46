"""Types of the pybind11 module; tests/test_layering.py holds the names against the built one."""

from collections.abc import Sequence
from typing import Any

def build_info() -> dict[str, str]: ...
def cpu_isa() -> str: ...
def cpu_isas() -> list[str]: ...
def force_isa(name: str) -> None: ...
def used_threads() -> bool: ...
def divide_loop(
    directions: int,
    rows: int,
    panels: int,
    weight_bytes: int,
    steps: int,
    flops_per_step: int,
    threads: int,
    exchanged: int = 0,
    layers: int = 1,
    all: int = 0,
) -> dict[str, int]: ...
def threads_in_crowd(runs: list[tuple[int, int, int, int, int, int]]) -> list[int]: ...
def cuda_plan(
    *,
    cell: int,
    backward: bool,
    T: int,
    B: int,
    D: int,
    H: int,
    P: int,
    element_size: int,
    sms: int,
    shared_per_block: int,
    shared_per_sm: int,
    threads_per_sm: int,
    registers_per_sm: int,
    cooperative: bool,
    loops: bool = True,
    clusters: Sequence[int] = ...,
    tensor: bool = False,
    rowwise: bool = False,
    clustered: bool = False,
    clusters_first: bool = False,
) -> dict[str, Any]: ...

class Stream:
    def __init__(
        self, dtype: str, cell: int, variant: Sequence[float], batch_size: int, layers: list[list[int]]
    ) -> None: ...
    def run(self, x: int, steps: int, y: int) -> None: ...
    def read_state(self, h: int, c: int) -> None: ...
    def write_state(self, h: int, c: int) -> None: ...
    def clear(self, rows: list[int] = ...) -> None: ...
    def fork(self, batch_size: int) -> Stream: ...

def vector_sigmoid(x: Any) -> Any: ...
def vector_tanh(x: Any) -> Any: ...
def narrow_sigmoid(x: Any) -> Any: ...
def narrow_tanh(x: Any) -> Any: ...
