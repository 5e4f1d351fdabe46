"""Whether a provider's result is right. What fails here is refused: a wrong result has no speed.

Each tensor (output, last states, every gradient) is held against ``nn.*`` run in float64 on the same, rounded numbers.
The error is ``|a - b| / |b|`` in the Euclidean norm of the whole tensor, and may be twice the error of ``nn.*`` in the
case's own dtype, or the floor below where that error happens to be smaller. One wrong element in a million shows.
On CUDA float64 runs there too, at the size that is timed: a barrier may fail only where many blocks wait many times.
"""

from __future__ import annotations

import copy
import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .cases import Case
from .providers import ModuleCall

# Two orders of summation over a long sequence (f64, f32); four roundings, since tiny shapes do not average them out
# (TF32 rounds the factors of a product to as many bits as f16 has).
FLOOR = {"f64": 1e-10, "f32": 1e-5, "tf32": 2**-9, "bf16": 2**-6, "f16": 2**-9}


@dataclasses.dataclass(frozen=True)
class Verdict:
    right: bool
    error: float  # the largest of all tensors
    text: str


class Truth(ModuleCall):
    """``nn.*`` in float64, on the numbers that the case's dtype holds."""

    def __init__(self, case: Case, reference: nn.RNNBase) -> None:
        # Copied before .double(): the timed module shares these parameters.
        super().__init__(copy.deepcopy(reference).double(), case)
        self.dy = self.dy.double()
        self.data = self.data.detach().double().requires_grad_(case.training)
        self.x = self.x._replace(data=self.data) if isinstance(self.x, PackedSequence) else self.data


def error(found: Tensor, true: Tensor) -> float:
    """Relative, in the Euclidean norm; infinite for a wrong shape and for NaN."""
    if found.shape != true.shape:
        return float("inf")
    distance = torch.linalg.vector_norm(found.double() - true).item()
    size = torch.linalg.vector_norm(true).item()
    relative = distance / size if size > 0 else distance
    return relative if relative == relative else float("inf")


class Gate:
    def __init__(self, case: Case, reference: nn.RNNBase, baseline: dict[str, Tensor]) -> None:
        self.floor = FLOOR[case.dtype]
        self.true = Truth(case, reference).results()
        # A baseline that could not run, or gave NaN, has no error of its own to allow for.
        own = {name: error(baseline[name], true) if baseline else 0.0 for name, true in self.true.items()}
        self.allowed = {
            name: max(2 * off, self.floor) if math.isfinite(off) else self.floor for name, off in own.items()
        }

    def check(self, found: dict[str, Tensor]) -> Verdict:
        worst = 0.0
        wrong: list[str] = []
        for name, true in self.true.items():
            if name not in found:
                return Verdict(False, float("inf"), f"wrong result: no {name}")
            off = error(found[name], true)
            worst = max(worst, off)
            if not off <= self.allowed[name]:
                wrong.append(f"{name} off by {off:.1e} (allowed {self.allowed[name]:.1e})")
        if wrong:
            return Verdict(False, worst, "wrong result: " + ", ".join(wrong[:3]) + (" ..." if len(wrong) > 3 else ""))
        return Verdict(True, worst, "")
