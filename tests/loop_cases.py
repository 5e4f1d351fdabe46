"""What the tests of the ops share: problems of every kind, a run of the ops, and the same by the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from devices import device
from pairs import distance, largest_of
from torch import Tensor

from fused_rnn import ops, reference
from fused_rnn.ops import Save
from fused_rnn.reference import Cell, Variant, gates_of

CELLS = [Cell.LSTM, Cell.GRU, Cell.RNN_TANH, Cell.RNN_RELU]
LINEAR = [Cell.LSTM_LINEAR, Cell.GRU_LINEAR, Cell.RNN_LINEAR]


@dataclass(frozen=True)
class Case:
    """The sizes and options of a layer; P = 0: no projection."""

    cell: Cell
    T: int = 7
    B: int = 3
    I: int = 5
    H: int = 9
    P: int = 0
    D: int = 1
    bias: bool = True
    packed: bool = False
    reset: str = ""  # "zero" or "initial", what a random mask clears the state to
    variant: Variant | None = None
    cells: bool = False  # whether gradients come to c of every step
    seeded: bool = False  # whether what the variant may draw is drawn

    def __str__(self) -> str:
        flags = ("b" if self.bias else "") + ("p" if self.packed else "")
        flags += f"-{self.reset}" if self.reset else ""
        flags += "-variant" + "".join(str(int(number)) for number in self.variant) if self.variant else ""
        flags += "-cells" if self.cells else ""
        flags += "-seeded" if self.seeded else ""
        return f"{self.cell.name}-T{self.T}-B{self.B}-I{self.I}-H{self.H}-P{self.P}-D{self.D}-{flags}"

    @property
    def R(self) -> int:
        return self.P or self.H

    def batch_sizes(self) -> Tensor | None:
        """Sequences of every length there is room for, the longest first; some equal."""
        if not self.packed:
            return None
        lengths = [max(1, self.T - (b * self.T) // max(self.B, 1)) for b in range(self.B)]
        return torch.tensor([sum(length > t for length in lengths) for t in range(self.T)], device="cpu")


@dataclass(frozen=True)
class Problem:
    """Inputs and incoming gradients of one layer."""

    cell: Cell
    x: Tensor
    h0: Tensor
    c0: Tensor | None
    weights: list[Tensor]
    batch_sizes: Tensor | None
    dy: Tensor | None
    dhn: Tensor | None
    dcn: Tensor | None
    reset: Tensor | None = None
    reset_initial: bool = False
    variant: Variant | None = None
    seed: Tensor | None = None
    dcells: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        named = {
            k: getattr(self, k) for k in ("x", "h0", "c0", "batch_sizes", "dy", "dhn", "dcn", "reset", "seed", "dcells")
        }
        named |= {f"weights[{i}]": w for i, w in enumerate(self.weights)}
        return {k: v for k, v in named.items() if v is not None}

    def to(self, *where: torch.dtype | torch.device) -> Problem:
        """Another dtype or device, for all but the lengths."""

        def cast(t: Tensor | None) -> Tensor | None:
            return t if t is None else t.to(*where)

        return replace(
            self,
            weights=[w.to(*where) for w in self.weights],
            **{k: cast(getattr(self, k)) for k in ("x", "h0", "c0", "dy", "dhn", "dcn", "dcells")},
        )


def random_values(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu") * scale


def make(case: Case, dtype: torch.dtype = torch.float64, seed: int = 0, values=random_values) -> Problem:
    """`values(generator, *shape, scale=)` supplies the numbers, on the CPU; weights have torch's scale, 1/sqrt(H)."""
    generator = torch.Generator().manual_seed(seed)
    G, R, scale = gates_of(case.cell, case.variant), case.R, case.H**-0.5
    sizes = case.batch_sizes()
    rows = (case.T, case.B) if sizes is None else (int(sizes.sum()),)
    weights = []
    for _ in range(case.D):
        weights += [values(generator, G * case.H, case.I, scale=scale), values(generator, G * case.H, R, scale=scale)]
        if case.bias:
            weights += [values(generator, G * case.H, scale=scale) for _ in range(2)]
        if case.P:
            weights += [values(generator, case.P, case.H, scale=scale)]
        if case.variant and case.variant.peephole:
            weights += [values(generator, (G - 1) * case.H)]
        if case.variant and case.variant.layer_norm:
            sizes_of_norm = [G * case.H] * 2 + [case.H] * (2 if case.cell.is_lstm else 0)
            weights += [values(generator, size) for size in sizes_of_norm]
    problem = Problem(
        cell=case.cell,
        x=values(generator, *rows, case.I),
        h0=values(generator, case.D, case.B, R),
        c0=values(generator, case.D, case.B, case.H) if case.cell.is_lstm else None,
        weights=weights,
        batch_sizes=sizes,
        dy=values(generator, *rows, case.D * R),
        dhn=values(generator, case.D, case.B, R),
        dcn=values(generator, case.D, case.B, case.H) if case.cell.is_lstm else None,
        variant=case.variant,
    )
    if case.seeded:
        seed = torch.randint(-(2**63), 2**63 - 1, (case.D, case.B), generator=generator, device="cpu")
        problem = replace(problem, seed=seed.to(device()))
    if case.cells:
        problem = replace(problem, dcells=values(generator, *rows, case.D * case.H))
    if case.reset:
        reset = torch.rand(rows, generator=generator, device="cpu") < 0.3
        problem = replace(problem, reset=reset.to(device()), reset_initial=case.reset == "initial")
    return problem.to(device(), dtype)


def all_needs(problem: Problem) -> int:
    return (1 << (3 + len(problem.weights))) - 1


def forward(problem: Problem, save: Save = Save.ALL) -> tuple[Tensor, ...]:
    p = problem
    inputs = (p.x, p.h0, p.c0, p.weights, p.batch_sizes, int(p.cell), int(save))
    return ops.layer_forward(*inputs, p.reset, p.reset_initial, p.variant, p.seed)


def backward(problem: Problem, y: Tensor, saved: Tensor, needs: int | None = None) -> dict[str, Tensor]:
    p = problem
    needs = all_needs(p) if needs is None else needs
    inputs = (p.dy, p.dhn, p.dcn, p.x, p.h0, p.c0, p.weights, y, saved, p.batch_sizes, int(p.cell))
    dx, dh0, dc0, dweights = ops.layer_backward(*inputs, needs, p.reset, p.reset_initial, p.variant, p.seed, p.dcells)
    return {"dx": dx, "dh0": dh0, "dc0": dc0} | {f"dweights[{i}]": w for i, w in enumerate(dweights)}


def backward_gates(problem: Problem, y: Tensor, saved: Tensor) -> dict[str, Tensor]:
    p = problem
    inputs = (p.dy, p.dhn, p.dcn, p.x, p.h0, p.c0, p.weights, y, saved, p.batch_sizes, int(p.cell))
    out = ops.layer_backward_gates(*inputs, p.reset, p.reset_initial, p.variant, p.seed, p.dcells)
    return dict(zip(("dh0", "dc0", "dgx", "dgh", "dr"), out, strict=True))


def run(problem: Problem, save: Save = Save.ALL) -> dict[str, Tensor]:
    """Everything the ops make of a problem, but `saved`."""
    y, hn, cn, saved = forward(problem, save)
    return {"y": y, "hn": hn, "cn": cn} | backward(problem, y, saved)


def expected(problem: Problem) -> dict[str, Tensor]:
    """The same by the reference and autograd."""
    p = problem
    none = p.x.new_empty(0)
    leaves = [p.x, p.h0, *([] if p.c0 is None else [p.c0]), *p.weights]
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    x, h0, *rest = leaves
    c0, weights = (None, rest) if p.c0 is None else (rest[0], rest[1:])
    options = {"reset": p.reset, "reset_initial": p.reset_initial, "variant": p.variant, "seed": p.seed}
    options["cells"] = p.dcells is not None
    y, hn, cn, cells = reference.layer(x, h0, c0, weights, p.batch_sizes, p.cell, **options)
    every = ((y, p.dy), (hn, p.dhn), (cn, p.dcn), (cells, p.dcells))
    pairs = [(o, g) for o, g in every if o is not None and g is not None]
    outputs, incoming = zip(*pairs, strict=True)
    grads = list(torch.autograd.grad(outputs, leaves, incoming, allow_unused=True, materialize_grads=True))
    out = {"y": y.detach(), "hn": hn.detach(), "cn": none if cn is None else cn.detach()}
    out |= {"dx": grads.pop(0), "dh0": grads.pop(0), "dc0": none if p.c0 is None else grads.pop(0)}
    return out | {f"dweights[{i}]": g for i, g in enumerate(grads)}


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], rtol: float = 1e-10, atol: float = 1e-11) -> None:
    """Values, shapes and dtypes; where NaN is wanted, NaN."""
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(
            got[name], want[name], rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
        )


def assert_exact(case: Case, dtype: torch.dtype, largest: int) -> None:
    """Of small whole numbers and sparse weights, so that nothing is rounded, up to the number that must not be passed:
    all that the ops make of them in ``dtype`` equals the reference."""

    def whole_numbers(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randint(-1, 2, shape, generator=generator, dtype=torch.float64, device="cpu")

    problem = make(case, torch.float64, values=whole_numbers)
    sparse = [w * (torch.arange(w.numel(), device=w.device).view(w.shape) % 7 == 0).to(w) for w in problem.weights]
    problem = replace(problem, weights=sparse)
    want = expected(problem)
    assert max(float(value.abs().max()) for value in want.values() if value.numel()) <= largest
    got = run(problem.to(dtype))
    assert_same({name: value.double() for name, value in got.items()}, want, rtol=0, atol=0)


def assert_near(problem: Problem, roundings: float) -> None:
    """By the ops, whatever is saved: within so many roundings of the truth, of the size of the values."""
    eps = torch.finfo(problem.x.dtype).eps
    want = expected(problem.to(torch.float64))
    for save in (Save.ALL, Save.STATES):
        got = run(problem, save)
        for name, value in want.items():
            assert distance(got[name], value) <= roundings * eps * largest_of([value]), name


def assert_close_in_norm(got: dict[str, Tensor], want: dict[str, Tensor], bound: float) -> None:
    """Each output's error, of its size, as vectors."""
    for name, exact in want.items():
        if exact.numel():
            error, size = (got[name].double() - exact).norm(), exact.norm()
            assert error <= bound * size, f"{name}: {error:.1e} of {size:.1e}"


def assert_identical(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """The same bits, NaN included."""
    assert got.keys() == want.keys()
    for name in want:
        a, b = got[name], want[name]
        assert a.shape == b.shape, name
        assert a.dtype == b.dtype, name
        different = a.contiguous().view(torch.uint8) != b.contiguous().view(torch.uint8)
        assert not different.any(), f"{name}: {int(different.sum())} bytes of {different.numel()} differ"
