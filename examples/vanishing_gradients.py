"""Why gradients vanish and explode, measured: the decay of dL/dh_t beside the bound |W|^(T-t) and the eigenvalue
criterion of Pascanu, Mikolov and Bengio 2013 ("On the difficulty of training recurrent neural networks").

    python -m examples.vanishing_gradients [--steps 100] [--hidden 32] [--out FOLDER]

With h_t = act(W h_{t-1} + U x_t), act tanh or relu, each step of the backward multiplies by W^T and by slopes of at
most 1. So, asserted below,

- |dL/dh_t| <= |W|^(T-t) |dL/dh_T|, in the spectral norm: a norm below 1 suffices to vanish;
- where the gradient explodes, the spectral radius of W is above 1: it is necessary;
- it is not sufficient: saturated units and silent ones have small slopes;
- of a matrix that is not normal the norm may be above 1 and the radius below: the gradient grows at first, then
  vanishes at the rate of the radius (Gelfand's formula: |W^k|^(1/k) -> radius).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import fused_rnn
from examples.common import plotting
from fused_rnn.diagnostics import (
    LayerFlow,
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
    rate: float | None = None  # factor a step, where theory tells it: every slope is 1


def cases(hidden: int) -> list[Case]:
    orthogonal = torch.nn.init.orthogonal_(torch.empty(hidden, hidden, dtype=torch.float64))
    identity = torch.eye(hidden, dtype=torch.float64)
    shifted = 0.8 * identity + 1.5 * torch.diag(torch.ones(hidden - 1, dtype=torch.float64), 1)
    shifted[2:] = 0.8 * identity[2:]  # all eigenvalues 0.8, a chain of 3
    return [
        Case("tanh, 0.9 x orthogonal", "tanh", 0.9 * orthogonal, 1.0, "vanishing"),
        Case("tanh, orthogonal, no input", "tanh", orthogonal, 0.0, "healthy", 1.0),
        Case("tanh, 1.2 x orthogonal, no input", "tanh", 1.2 * orthogonal, 0.0, "exploding", 1.2),
        Case("tanh, 1.2 x orthogonal, saturated", "tanh", 1.2 * orthogonal, 8.0, "vanishing"),
        Case("tanh, not normal, no input", "tanh", shifted, 0.0, "vanishing"),
        Case("relu, 0.9 x identity", "relu", 0.9 * identity, 1.0, "vanishing", 0.9),
        Case("relu, identity (IRNN)", "relu", identity, 1.0, "healthy", 1.0),
        Case("relu, 1.1 x identity", "relu", 1.1 * identity, 1.0, "exploding", 1.1),
        Case("relu, 1.1 x orthogonal", "relu", 1.1 * orthogonal, 1.0, "vanishing"),
    ]


def network(case: Case) -> fused_rnn.RNN:
    hidden = len(case.weight)
    rnn = fused_rnn.RNN(hidden, hidden, nonlinearity=case.activation, bias=False, dtype=torch.float64)
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


def check(case: Case, rnn: fused_rnn.RNN, layer: LayerFlow) -> tuple[float, float]:
    """Asserts what the theory says; returns radius and norm of W."""
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
    if case.rate is not None:
        assert abs(layer.rate - case.rate) < 1e-6, f"{case.name}: a step has {layer.rate}, not {case.rate}"
    return spectrum.radius, spectrum.norm


def check_without_normality(rnn: fused_rnn.RNN, steps: int) -> None:
    """Without input d h_T / d h_t is W^(T-t): it grows, and falls in the end at the rate of the radius."""
    (spectrum,) = recurrent_spectra(rnn)
    assert spectrum.radius < 1 < spectrum.norm
    x = torch.zeros(steps, rnn.input_size, dtype=torch.float64)
    lags = [1, 4, steps // 2, steps - 1]
    measured = jacobian_norms(rnn, x, [steps - 1 - lag for lag in lags], iterations=10)
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
    print(f"{'':36} radius   |W|   |dL/dh| last    first      bound  measured")
    flows = {}
    for case in cases(options.hidden):
        rnn = network(case)
        layer = measure(case, rnn, x)
        radius, norm = check(case, rnn, layer)
        bound = norm ** (options.steps - 1) * float(layer.h[-1])
        numbers = f"{layer.h[-1]:12.2e} {layer.h[0]:8.1e} {bound:10.1e}"
        print(f"{case.name:36} {radius:6.2f} {norm:5.2f} {numbers}  {verdict(layer)}")
        flows[case.name] = [layer]
        if "not normal" in case.name:
            check_without_normality(rnn, options.steps)
    with plotting(options.out / "vanishing_gradients.png"):
        plots.plot_norms(flows, options.out / "vanishing_gradients.png")


if __name__ == "__main__":
    main()
