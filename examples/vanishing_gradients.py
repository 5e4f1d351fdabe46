"""Why gradients vanish and explode, measured: the decay of dL/dh_t beside the bound |W|^(T-t) and the eigenvalue
criterion of Pascanu, Mikolov and Bengio 2013 ("On the difficulty of training recurrent neural networks"), with and
without clips between steps.

    python -m examples.vanishing_gradients [--steps 100] [--hidden 32] [--out FOLDER]

With h_t = act(W h_{t-1} + U x_t), act tanh or relu, each step of the backward multiplies by W^T and by slopes of at
most 1. So, asserted below,

- |dL/dh_t| <= |W|^(T-t) |dL/dh_T|, in the spectral norm: a norm below 1 suffices to vanish;
- where the gradient explodes, the spectral radius of W is above 1: it is necessary;
- it is not sufficient: saturated units and silent ones have small slopes;
- of a matrix that is not normal the norm may be above 1 and the radius below: the gradient grows at first, then
  vanishes at the rate of the radius (Gelfand's formula: |W^k|^(1/k) -> radius);
- where the gradient is clipped between steps (docs/gradient_clipping.md), no row of dL/dh_t, t < T, is larger than the
  bound: what explodes grows at its rate up to there, and stays;
- that is no cure for vanishing: a clip only shortens. What stays below the bound vanishes as it does without.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import fused_rnn
from examples.common import plotting, write
from fused_rnn.diagnostics import (
    LayerFlow,
    Spectrum,
    gradient_flow,
    jacobian_norms,
    plots,
    recurrent_spectra,
    verdict,
)


class Case(NamedTuple):
    name: str
    activation: str
    weight: Tensor  # W [H, H]
    inputs: float  # their size; 0 leaves tanh in its linear part, where every slope is 1
    expected: str  # the verdict
    rate: float | None = None  # factor a step before a clip, where theory tells it: every slope is 1
    clip_norm: float | None = None
    clip_value: float | None = None

    @property
    def bound(self) -> float:
        """Of the norm of a row, by the clips."""
        by_value = math.inf if self.clip_value is None else self.clip_value * math.sqrt(len(self.weight))
        return min(by_value, math.inf if self.clip_norm is None else self.clip_norm)

    @property
    def clipped(self) -> bool:
        return self.bound < math.inf


def cases(hidden: int) -> list[Case]:
    orthogonal = torch.nn.init.orthogonal_(torch.empty(hidden, hidden, dtype=torch.float64))
    identity = torch.eye(hidden, dtype=torch.float64)
    shifted = 0.8 * identity + 1.5 * torch.diag(torch.ones(hidden - 1, dtype=torch.float64), 1)
    shifted[2:] = 0.8 * identity[2:]  # all eigenvalues 0.8, a chain of 3
    grows = Case("tanh, 1.2 x orthogonal, no input", "tanh", 1.2 * orthogonal, 0.0, "exploding", 1.2)
    halves = Case("tanh, 0.5 x orthogonal, no input", "tanh", 0.5 * orthogonal, 0.0, "vanishing", 0.5)
    shrinks = Case("relu, 0.9 x identity", "relu", 0.9 * identity, 1.0, "vanishing", 0.9)
    diagonal = Case("relu, 1.1 x identity", "relu", 1.1 * identity, 1.0, "exploding", 1.1)
    return [
        Case("tanh, 0.9 x orthogonal", "tanh", 0.9 * orthogonal, 1.0, "vanishing"),
        Case("tanh, orthogonal, no input", "tanh", orthogonal, 0.0, "healthy", 1.0),
        grows,
        grows._replace(name=f"{grows.name}, clipped", expected="healthy", clip_norm=50.0),
        Case("tanh, 1.2 x orthogonal, saturated", "tanh", 1.2 * orthogonal, 8.0, "vanishing"),
        Case("tanh, not normal, no input", "tanh", shifted, 0.0, "vanishing"),
        halves,
        halves._replace(name=f"{halves.name}, clipped", clip_norm=50.0),
        shrinks,
        shrinks._replace(name=f"{shrinks.name}, clipped", clip_norm=50.0),
        Case("relu, identity (IRNN)", "relu", identity, 1.0, "healthy", 1.0),
        Case("relu, 1.1 x orthogonal", "relu", 1.1 * orthogonal, 1.0, "vanishing"),
        diagonal,
        diagonal._replace(name=f"{diagonal.name}, clipped norm", expected="healthy", clip_norm=50.0),
        diagonal._replace(name=f"{diagonal.name}, clipped values", expected="healthy", clip_value=5.0),
    ]


def network(case: Case) -> fused_rnn.RNN:
    hidden = len(case.weight)
    rnn = fused_rnn.RNN(
        hidden,
        hidden,
        nonlinearity=case.activation,
        bias=False,
        clip_grad_norm=case.clip_norm,
        clip_grad_value=case.clip_value,
        dtype=torch.float64,
    )
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(case.weight)
        rnn.weight_ih_l0.copy_(torch.eye(hidden))
    return rnn


def measure(case: Case, rnn: fused_rnn.RNN, x: Tensor) -> LayerFlow:
    h0 = x.new_zeros(1, x.shape[1], x.shape[2])
    if case.activation == "relu" and case.rate is not None:
        x, h0 = x.abs(), h0 + 1  # every unit stays above zero
    with gradient_flow(rnn, gates=False) as flow:
        y, _ = rnn(x * case.inputs, h0)
        y[-1].sum().backward()
    return flow.layers[0]


def check(case: Case, rnn: fused_rnn.RNN, layer: LayerFlow) -> tuple[Spectrum, Tensor]:
    """Asserts what the theory says; returns what W is like, and the bound |W|^(T-t) |dL/dh_T|."""
    (spectrum,) = recurrent_spectra(rnn)
    back = torch.arange(layer.steps - 1, -1, -1, dtype=torch.float64)  # T - t
    bound = spectrum.norm**back * layer.h[-1]
    assert (layer.h <= bound * (1 + 1e-9)).all(), f"{case.name}: the gradient is above the bound |W|^(T-t)"
    said = verdict(layer)
    assert said.kind == case.expected, f"{case.name}: expected {case.expected}, measured {said}"
    if spectrum.norm < 0.93:
        assert said.kind == "vanishing", f"{case.name}: a norm below 1 did not suffice"
    if said.kind == "exploding":
        assert spectrum.radius > 1, f"{case.name}: it explodes with a radius of {spectrum.radius}"
    if case.rate is not None and not case.clipped:
        assert abs(layer.rate - case.rate) < 1e-6, f"{case.name}: a step has {layer.rate}, not {case.rate}"
    return spectrum, bound


def check_without_normality(rnn: fused_rnn.RNN, steps: int) -> None:
    """Without input d h_T / d h_t is W^(T-t): it grows, and falls in the end at the rate of the radius."""
    (spectrum,) = recurrent_spectra(rnn)
    assert spectrum.radius < 1 < spectrum.norm
    x = torch.zeros(steps, rnn.input_size, dtype=torch.float64)
    lags = [1, 4, steps // 2, steps - 1]
    measured = jacobian_norms(rnn, x, [steps - 1 - lag for lag in lags], iterations=30)
    powers = torch.stack(
        [torch.linalg.matrix_norm(torch.linalg.matrix_power(rnn.weight_hh_l0, lag), 2) for lag in lags]
    )
    torch.testing.assert_close(measured, powers.detach(), rtol=1e-6, atol=0)
    assert measured[1] > measured[0] > 1, "it does not grow at first"
    assert measured[3] < 1e-3 * measured[1], "it does not vanish"
    rate = float((measured[3] / measured[2]) ** (1 / (lags[3] - lags[2])))
    assert abs(rate / spectrum.radius - 1) < 0.1, f"its rate is {rate}, not the radius {spectrum.radius}"
    print(
        f"{'':4}|W| {spectrum.norm:.2f}, radius {spectrum.radius:.2f}; largest singular value of d h_T / d h_(T-k): "
        + ", ".join(f"k {lag}: {norm:.2e}" for lag, norm in zip(lags, measured.tolist(), strict=True))
        + f"; in the end x {rate:.3f} a step"
    )


def check_clipping(case: Case, x: Tensor, together: LayerFlow) -> None:
    """Each row by itself, as bounds are of rows and none touches another, beside the same without clips."""
    free_case = case._replace(clip_norm=None, clip_value=None)
    rnn, free_rnn = network(case), network(free_case)
    rows = torch.zeros_like(together.rows)
    for row in x.split(1, dim=1):
        layer, free = measure(case, rnn, row), measure(free_case, free_rnn, row)
        assert (layer.h[:-1] <= case.bound * (1 + 1e-9)).all(), f"{case.name}: a row is above the bound of the clip"
        # A clip of norms keeps the direction; one of values does of the identity, where all units are alike.
        as_told = free.h[:-1].clamp(max=case.bound)
        torch.testing.assert_close(layer.h[:-1], as_told, rtol=1e-9, atol=0, msg=f"{case.name}: not cut to the bound")
        cut, sent = layer.clipping["h"], layer.recurrent[:-1]
        where = sent > case.bound
        assert torch.equal(cut.rows[:-1] > 0, where), f"{case.name}: the record is wrong about where it was cut"
        share = (case.bound / sent).clamp(max=1)
        said = f"{case.name}: the record is wrong about how much was cut"
        torch.testing.assert_close(cut.factor[:-1], share, rtol=1e-9, atol=0, msg=said)
        assert where.any() == (verdict(free).kind == "exploding"), f"{case.name}: cut at {int(where.sum())} steps"
        if not where.any():
            assert torch.equal(layer.h, free.h), f"{case.name}: nothing is cut, and yet it is not the same"
        rows += cut.rows
    assert torch.equal(together.clipping["h"].rows, rows), f"{case.name}: together other rows are cut"
    at = where.nonzero().flatten()
    acted = f"{len(at)} steps"
    if len(at):
        acted += f", from step {at[-1]} back; at step 0 to {share[0]:.1%} of its norm"
    norms = f"at most {case.bound:.1f}, at the first step {layer.h[0]:.1e}, without clips {free.h[0]:.1e}"
    print(f"{'':4}of a row: {norms}; cut at {acted}")


def draw(flows: dict[str, list[LayerFlow]], bounds: dict[str, Tensor], path: Path) -> None:
    """The norms, and the bounds over them."""
    figure = plots.plot_norms(flows)
    for axes, bound in zip(figure.axes, bounds.values(), strict=True):
        axes.plot(bound, ":", color="black", lw=1.2, label="bound")
        axes.legend(fontsize=9, frameon=False)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args(arguments)
    if options.steps < 80:
        parser.error("it takes 80 steps for 0.9^T to vanish")
    torch.manual_seed(0)
    x = torch.randn(options.steps, 4, options.hidden, dtype=torch.float64)
    print(f"{'':42} radius   |W|   |dL/dh| last    first      bound  measured")
    flows, bounds, table = {}, {}, []
    for case in cases(options.hidden):
        rnn = network(case)
        layer = measure(case, rnn, x)
        spectrum, bound = check(case, rnn, layer)
        bound[:-1].clamp_(max=case.bound * math.sqrt(x.shape[1]))  # of all rows
        flows[case.name], bounds[case.name] = [layer], bound
        numbers = {"last": float(layer.h[-1]), "first": float(layer.h[0]), "bound": float(bound[0])}
        columns = "{last:12.2e} {first:8.1e} {bound:10.1e}".format(**numbers)
        print(f"{case.name:42} {spectrum.radius:6.2f} {spectrum.norm:5.2f} {columns}  {verdict(layer)}")
        if "not normal" in case.name:
            check_without_normality(rnn, options.steps)
        if case.clipped:
            check_clipping(case, x, layer)
        clips = {"clip_norm": case.clip_norm, "clip_value": case.clip_value, "clipped_steps": verdict(layer).clipped}
        found = {"case": case.name, "radius": spectrum.radius, "norm": spectrum.norm, **numbers, **clips}
        table.append(found | {"rate": layer.rate, "verdict": verdict(layer).kind})
    write(options.out / "vanishing_gradients.json", "examples.vanishing_gradients", arguments, table=table)
    with plotting(options.out / "vanishing_gradients.png"):
        draw(flows, bounds, options.out / "vanishing_gradients.png")


if __name__ == "__main__":
    main()
