"""The house keeps its shape: nothing imports upward, and C++ rings see only what is theirs."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fused_rnn"

# A module may import from lower rings only, and from its own where `SIDEWAYS` says so. A new module needs a place here.
RINGS = [
    {"arguments", "kinds", "philox", "transfer", "transforms"},
    {"regularisation"},
    {"reference"},
    {"autocast", "checks", "layouts"},
    {"connections", "init", "onnx_forms"},
    {"onnx_nodes"},
    {"fallback", "folding", "forking", "ops"},
    {"fakes", "flops", "higher_order", "kept"},
    {"autograd"},
    {"dropout", "exported", "lengths", "recording"},
    {"stack"},
    {"network"},
    {"calls", "graph_nodes", "parameters", "step", "truncated", "variants"},
    {"functional", "module_base", "cells"},
    {"modules", "streaming"},
    {"convert", "diagnostics", "interchange", "onnx"},
    {"__init__"},
    {"bench"},
    {"planning"},
    {"cli"},
    {"__main__"},
]
RING = {name: ring for ring, names in enumerate(RINGS) for name in names}
SIDEWAYS: set[tuple[str, str]] = set()
# Beyond the order of the rings: who must not know whom.
MUST_NOT_KNOW = {
    "modules": {"ops", "autograd"},
    "module_base": {"ops", "autograd"},
    "cells": {"ops", "autograd"},
    "functional": {"ops"},
    "convert": {"ops", "autograd"},
    "diagnostics": {"ops", "autograd"},
    "bench": {"ops", "autograd", "reference"},
}
HARD_LIMIT = 400  # lines
SOURCES = {".h", ".cpp", ".cu", ".cuh", ".py", ".sh"}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in it."""
    found: set[str] = set()
    inside = path.parent != PACKAGE  # bench/
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == (2 if inside else 1):
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("fused_rnn"):
            found |= {node.module.split(".")[1]} if "." in node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("fused_rnn.")}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path):
    name = module_of(path)
    assert name in RING, f"{name} has no ring: give it a place in RINGS of {Path(__file__).name} and in docs/design.md"
    for other in imports(path) - {"_C", name}:
        assert other in RING, f"{name} imports {other}, which has no ring"
        assert RING[other] < RING[name] or (name, other) in SIDEWAYS, f"{name} must not import {other}: it is not below"
        assert other not in MUST_NOT_KNOW.get(name, ()), f"{name} must not know {other}"


def test_only_ops_uses_the_op_library():
    def uses(path: Path) -> bool:
        attributes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute))
        return any(ast.unparse(node).startswith(("torch.ops.fused_rnn", "torch.ops.load")) for node in attributes)

    assert {module_of(path) for path in FILES if uses(path)} == {"ops"}


FORBIDDEN = {
    "csrc/core": r'#include\s*[<"](torch|ATen|c10|pybind11|.*/cpu/|.*/torch/|immintrin|arm_neon)',
    "csrc/cpu": r'#include\s*[<"](torch/|ATen|c10|pybind11|Python|.*/torch/)',
    "csrc/torch": r"#include\s*<(immintrin|arm_neon|ATen|c10/)|\b_mm\d*_[a-z]",
}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_cpp_rings(folder):
    for path in (ROOT / folder).glob("*"):
        if path.suffix in (".h", ".cpp"):
            found = re.search(FORBIDDEN[folder], path.read_text())
            assert not found, f"{path.name}: {found.group(0)}"


def test_types_of_the_extension():
    from fused_rnn import _C

    stub = ast.parse((PACKAGE / "_C.pyi").read_text())
    typed = {node.name for node in stub.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert typed == {name for name in dir(_C) if not name.startswith("_")}


def test_no_native_builds():
    assert "-march=native" not in (ROOT / "setup.py").read_text()


def test_no_file_is_too_long():
    sources = [path for top in ("csrc", "tests", "benchmarks") for path in (ROOT / top).rglob("*.*")]
    files = [*FILES, *(path for path in sources if path.suffix in SOURCES), *(ROOT / "examples").glob("*")]
    long = {str(path.relative_to(ROOT)): n for path in files if path.is_file() and (n := _lines(path)) > HARD_LIMIT}
    assert not long


def _lines(path: Path) -> int:
    return len(path.read_text(errors="ignore").splitlines())


def test_one_version():
    import fused_rnn

    found = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found
    assert found.group(1) == fused_rnn.__version__
