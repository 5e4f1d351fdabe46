"""Types of the pybind11 module; tests/test_layering.py holds the names against the built one."""

from typing import Any

def build_info() -> dict[str, str]: ...
def cpu_isa() -> str: ...
def cpu_isas() -> list[str]: ...
def force_isa(name: str) -> None: ...
def used_threads() -> bool: ...
def divide_loop(
    directions: int, rows: int, panels: int, weight_bytes: int, steps: int, flops_per_step: int, threads: int
) -> dict[str, int]: ...
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
) -> dict[str, Any]: ...
def vector_sigmoid(x: Any) -> Any: ...
def vector_tanh(x: Any) -> Any: ...
