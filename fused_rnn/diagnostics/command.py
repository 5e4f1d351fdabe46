"""``fused-rnn gradflow``: the gradient through a fresh network, as a table, in words and as a picture.

In f64, so that a rate can be told of what in f32 would be zero, or infinite, after a few steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from .. import init, modules
from ..arguments import positive, seed
from .context import gradient_flow
from .flow import LayerFlow
from .jacobians import jacobian_norms
from .plots import plot_gates, plot_norms
from .spectra import recurrent_spectra
from .words import EXPLODED, VANISHED, table, verdict

__all__ = ["add_arguments", "run"]

Module = modules.LSTM | modules.GRU | modules.RNN
CELLS = ["LSTM", "GRU", "RNN", "IRNN"]
_ONLY_OF = {
    "nonlinearity": {"RNN"},
    "gain": {"LSTM", "GRU", "RNN"},
    "forget_bias": {"LSTM"},
    "chrono": {"LSTM", "GRU"},
    "zoneout_c": {"LSTM"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cell", nargs="+", choices=CELLS, default=["LSTM"], help="several are drawn side by side")
    parser.add_argument("--steps", type=positive, default=200)
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--input", type=positive, default=16)
    parser.add_argument("--hidden", type=positive, default=64)
    parser.add_argument("--layers", type=positive, default=1)
    parser.add_argument("--bidirectional", action="store_true")
    parser.add_argument("--nonlinearity", help="of the RNN: tanh (default), relu, ...")
    parser.add_argument("--gain", type=float, help="W_hh orthogonal times this in place of torch's initial values")
    parser.add_argument("--forget-bias", type=float, help="of the LSTM")
    parser.add_argument("--chrono", type=float, metavar="STEPS", help="chrono initialisation of LSTM and GRU")
    parser.add_argument("--clip-value", type=float, help="bound of each value of the gradient between two steps")
    parser.add_argument("--clip-norm", type=float, help="bound of its norm in a row")
    parser.add_argument("--recurrent-dropout", type=float, default=0.0)
    parser.add_argument("--zoneout-h", type=float, default=0.0)
    parser.add_argument("--zoneout-c", type=float, help="of the LSTM")
    parser.add_argument(
        "--loss", choices=["last", "all"], default="last", help="on the last output (default) or on all"
    )
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--rows", type=positive, default=11, help="steps in the table")
    parser.add_argument("--jacobian", action="store_true", help="largest singular values of d h_T / d h_t, too")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")


def run(options: argparse.Namespace) -> int:
    flows: dict[str, list[LayerFlow]] = {}
    _check(options)
    for name in dict.fromkeys(options.cell):
        torch.manual_seed(options.seed)
        try:
            module = _module(name, options)
        except ValueError as error:
            raise _refused(error) from None
        module.double()
        x = torch.randn(options.steps, options.batch, options.input, dtype=torch.float64)
        with gradient_flow(module) as flow:
            y = module(x)[0]
            # A random direction: the gradient of the loss with respect to each output is a standard normal vector.
            chosen = y if options.loss == "all" else _last(y, options.bidirectional)
            (chosen * torch.randn_like(chosen)).sum().backward()
        flows[name] = flow.layers
        _tell(name, module, x, flow.layers, options)
    print(
        f"At the mean factor a step, from the last step to the first: below {VANISHED:g} vanishing, "
        f"above {EXPLODED:g} exploding, between them healthy."
    )
    _draw(flows, options.out)
    return 0


def _refused(why: object) -> SystemExit:
    return SystemExit(f"fused-rnn gradflow: {why}")


def _check(options: argparse.Namespace) -> None:
    """What none of the cells would take is not left out without a word."""
    for option, cells in _ONLY_OF.items():
        if getattr(options, option) is not None and not cells.intersection(options.cell):
            flag = option.replace("_", "-")
            raise _refused(f"--{flag} is for {' and '.join(sorted(cells))}, got --cell {' '.join(options.cell)}")
    if options.forget_bias is not None and options.chrono is not None:
        raise _refused("--forget-bias and --chrono set the same bias: give one of them")
    if options.jacobian and (options.bidirectional or options.steps < 2):
        raise _refused("--jacobian is of one direction and two steps or more")


def _module(name: str, options: argparse.Namespace) -> Module:
    given: dict[str, Any] = {"num_layers": options.layers, "bidirectional": options.bidirectional}
    given |= {"clip_grad_value": options.clip_value, "clip_grad_norm": options.clip_norm}
    given |= {"recurrent_dropout": options.recurrent_dropout, "zoneout_h": options.zoneout_h}
    if name == "LSTM":
        given["zoneout_c"] = options.zoneout_c or 0.0
    if name in ("RNN", "IRNN"):
        given["nonlinearity"] = "relu" if name == "IRNN" else options.nonlinearity or "tanh"
    made: Module = getattr(modules, name.removeprefix("I"))(options.input, options.hidden, **given)
    if name == "IRNN":
        init.identity_(made)
    elif options.gain is not None:
        init.orthogonal_(made, options.gain)
    if name == "LSTM" and options.forget_bias is not None:
        init.forget_bias_(made, options.forget_bias)
    if name in ("LSTM", "GRU") and options.chrono is not None:
        init.chrono_(made, options.chrono)
    return made


def _last(y: torch.Tensor, bidirectional: bool) -> torch.Tensor:
    """What each direction walks to in the end: [B, R] or [2, B, R]."""
    if not bidirectional:
        return y[-1]
    forward, reverse = y.chunk(2, -1)
    return torch.stack([forward[-1], reverse[0]])


def _tell(name: str, module: Module, x: torch.Tensor, layers: list[LayerFlow], options: argparse.Namespace) -> None:
    for spectrum in recurrent_spectra(module):
        where = f"layer {spectrum.layer}{' reverse' if spectrum.reverse else ''}"
        gate = "" if isinstance(module, modules.RNN) else f", gate {spectrum.gate}"
        print(f"{name}, {where}{gate}: W_hh has spectral radius {spectrum.radius:.3f}, norm {spectrum.norm:.3f}")
    if options.jacobian:
        steps = sorted({round(t) for t in torch.linspace(0, options.steps - 2, 6, device="cpu").tolist()})
        for t, norm in zip(steps, jacobian_norms(module, x[:, 0], steps).tolist(), strict=True):
            print(f"{name}: d h_{options.steps - 1} / d h_{t} has a largest singular value of about {norm:.3e}")
    for layer in layers:
        print(f"\n{name}, {layer.name}\n{table(layer, options.rows)}\n{name}, {layer.name}: {verdict(layer)}\n")


def _draw(flows: dict[str, list[LayerFlow]], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plot_norms(flows, folder / "gradflow.png")
        for name, layers in flows.items():
            plot_gates(layers[0], folder / f"gradflow_gates_{name}.png")
    except OSError as error:
        raise _refused(error) from None
    except ImportError:
        print("no pictures, as matplotlib is missing: pip install matplotlib")
        return
    print(f"pictures: {folder / 'gradflow.png'}, gradflow_gates_*.png beside it")
