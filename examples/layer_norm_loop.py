"""An LSTM with layer normalisation as it is usually written, a Python loop over the cell, beside ``layer_norm=True``.
Outputs and gradients must be the same; the time is told, that of the plain LSTM too.

    python -m examples.layer_norm_loop [--shapes 100,16,128 100,32,256] [--no-compile] [--out FOLDER]

The loop takes the product of the input for all steps at once. Compiled is its step: the whole loop, unrolled over a
hundred steps, takes the compiler longer than half an hour.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fused_rnn
from examples.common import write
from examples.python_loop import compare, measure, tell

Step = Callable[..., tuple[Tensor, Tensor]]


def step(gx: Tensor, h: Tensor, c: Tensor, w_hh: Tensor, b: Tensor, g_hh: Tensor, g_ch: Tensor, s_ch: Tensor) -> Any:
    """h_t and c_t [B, H] as in docs/layer_norm.md, from gx [B, 4H], the input's part."""
    gates = gx + F.layer_norm(F.linear(h, w_hh), g_hh.shape, g_hh) + b
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * F.layer_norm(c, g_ch.shape, g_ch, s_ch).tanh(), c


class Loop(nn.Module):
    """It has a copy of the weights."""

    def __init__(self, rnn: fused_rnn.LSTM, step: Step) -> None:
        super().__init__()
        self.own = nn.ParameterList(nn.Parameter(weight.detach().clone()) for weight in rnn.parameters())
        self.step = step

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        w_ih, w_hh, b_ih, b_hh, g_ih, g_hh, g_ch, s_ch = self.own
        gx = F.layer_norm(F.linear(x, w_ih), g_ih.shape, g_ih) + b_ih
        h, c = (part[0] for part in state)
        outputs = []
        for gx_t in gx:
            h, c = self.step(gx_t, h, c, w_hh, b_hh, g_hh, g_ch, s_ch)
            outputs.append(h)
        return torch.stack(outputs), (h[None], c[None])


def report(steps: int, rows: int, hidden: int, compiled: bool, rounds: int) -> dict[str, Any]:
    """Compares and measures, tells both, and raises where the numbers are not the same."""
    torch.manual_seed(0)
    ours = fused_rnn.LSTM(hidden, hidden, layer_norm=True)
    for weight in ours.parameters():  # gains and shifts too
        nn.init.uniform_(weight, -0.1, 0.1)
    forms: dict[str, nn.Module] = {"layer_norm=True": ours, "plain LSTM": fused_rnn.LSTM(hidden, hidden)}
    forms["Python loop"] = Loop(ours, step)
    if compiled:
        forms["its step compiled"] = Loop(ours, torch.compile(step, dynamic=False))
    x = torch.randn(steps, rows, hidden, requires_grad=True)
    state = (torch.zeros(1, rows, hidden),) * 2
    gradient = torch.ones(steps, rows, hidden)

    def train(form: nn.Module) -> None:
        x.grad = None
        form.zero_grad()
        form(x, state)[0].backward(gradient)

    difference = compare([ours, forms["Python loop"]], x, state)
    for form in forms.values():
        train(form)  # compiles
    took = measure({name: partial(train, form) for name, form in forms.items()}, rounds, 3)
    return tell({"steps": steps, "rows": rows, "hidden": hidden}, difference, took)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["100,8,64", "100,16,128", "100,32,256"], help="T,B,H; I is H")
    parser.add_argument("--rounds", type=int, default=7, help="of three calls of each form")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which takes a minute")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the numbers")
    options = parser.parse_args(arguments)
    table = [
        report(*map(int, shape.split(",")), compiled=not options.no_compile, rounds=options.rounds)
        for shape in options.shapes
    ]
    write(options.out / "layer_norm_loop.json", "examples.layer_norm_loop", arguments, table=table)


if __name__ == "__main__":
    main()
