"""Trains a character model on the Python sources of the standard library, once with ``nn.LSTM`` and once with
``fused_rnn.LSTM``, from the same seed. Both must tell the same losses, step by step; only the time differs.

    python -m examples.char_lm [--cell GRU] [--hidden 256] [--steps 100] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import sysconfig
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import fused_rnn

# The learning rate that suits each cell. Far above it training turns chaotic, and no two roundings stay together.
RATE = {"LSTM": 1.0, "GRU": 0.4, "RNN": 0.2}
# Between two correct implementations the order of sums differs, and so does their rounding. With SGD the losses then
# differ by some 2e-7; a wrong gradient would show as 1e-2. Adam would not do here: it divides small gradients by their
# own size, rounding included, so that even nn.LSTM with one thread and with two part by 3e-3 within 100 steps.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}


def read_text(characters: int) -> str:
    """The first ``characters`` of the standard library's sources in alphabetical order; every Python brings them."""
    text = ""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_text(encoding="utf-8", errors="ignore")
        if len(text) >= characters:
            break
    return text[:characters]


class CharModel(nn.Module):
    """Characters in, logits of the next character out."""

    def __init__(self, library: object, cell: str, characters: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, hidden)
        self.rnn = getattr(library, cell)(hidden, hidden, layers)  # library is torch.nn or fused_rnn
        self.head = nn.Linear(hidden, characters)

    def forward(self, x: Tensor, state: object = None) -> tuple[Tensor, object]:
        y, state = self.rnn(self.embed(x), state)
        return self.head(y), state


def batches(data: Tensor, steps: int, length: int, rows: int) -> list[Tensor]:
    """``steps`` random pieces of text, [length + 1, rows] each, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    starts = torch.randint(len(data) - length - 1, (steps, rows), generator=generator)
    offsets = torch.arange(length + 1)[:, None]
    return [data[start[None, :] + offsets] for start in starts]


def train(model: CharModel, work: list[Tensor], rate: float) -> tuple[list[float], float]:
    """Losses of all steps, and the seconds they took."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    losses = []
    begin = time.perf_counter()
    for batch in work:
        optimizer.zero_grad()
        logits, _ = model(batch[:-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, time.perf_counter() - begin


@torch.no_grad()
def sample(model: CharModel, alphabet: str, prompt: str, length: int) -> str:
    """Continues ``prompt``, a character at a time, carrying the state along."""
    generator = torch.Generator().manual_seed(2)
    state = None
    x = torch.tensor([[alphabet.index(c)] for c in prompt])  # [T, B=1]
    for _ in range(length):
        logits, state = model(x, state)
        x = torch.multinomial((logits[-1] / 0.7).softmax(-1), 1, generator=generator)  # [1, 1]
        prompt += alphabet[int(x)]
    return prompt


def draw(curves: dict[str, list[float]], title: str, path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: it needs matplotlib")
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    for (name, losses), style in zip(curves.items(), ({"lw": 4, "alpha": 0.4}, {"lw": 1, "ls": "--"}), strict=True):
        panel.plot(losses, label=name, **style)
    panel.set_xlabel("step")
    panel.set_ylabel("loss, nats per character")
    panel.set_title(title, fontsize=10)
    panel.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=["LSTM", "GRU", "RNN"], default="LSTM")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=16, help="pieces of text in a batch")
    parser.add_argument("--length", type=int, default=100, help="characters in a piece")
    parser.add_argument("--characters", type=int, default=500_000, help="of text")
    parser.add_argument("--rate", type=float, help=f"of learning (default {RATE})")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--sample", type=int, default=300, help="characters to write at the end")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the plot")
    options = parser.parse_args(arguments)
    rate = options.rate or RATE[options.cell]

    text = read_text(options.characters)
    alphabet = "".join(sorted(set(text)))
    index = {c: i for i, c in enumerate(alphabet)}
    data = torch.tensor([index[c] for c in text])
    dtype = getattr(torch, options.dtype)
    work = batches(data, options.steps, options.length, options.rows)
    print(f"{len(text)} characters of {len(alphabet)} kinds; {options.cell} of {options.hidden}, {options.steps} steps")

    curves: dict[str, list[float]] = {}
    models = {}
    took = {}
    for name, library in {"nn": nn, "fused_rnn": fused_rnn}.items():
        torch.manual_seed(0)
        models[name] = model = CharModel(library, options.cell, len(alphabet), options.hidden, options.layers).to(dtype)
        curves[name], took[name] = train(model, work, rate)
        print(
            f"{name + '.' + options.cell:15} {took[name]:6.2f} s   loss {curves[name][0]:.4f} -> {curves[name][-1]:.4f}"
        )

    off = max(abs(a - b) / a for a, b in zip(*curves.values(), strict=True))
    print(f"largest relative difference between the two losses of a step: {off:.1e}")
    assert off < TOLERANCE[dtype], f"the losses are not the same: {off:.1e} apart, {TOLERANCE[dtype]:.0e} allowed"
    print(f"fused_rnn trained {took['nn'] / took['fused_rnn']:.2f} times as fast (the whole step, optimizer included)")

    title = f"{options.cell} on the standard library: nn {took['nn']:.1f} s, fused_rnn {took['fused_rnn']:.1f} s"
    draw(curves, title, options.out / "char_lm.png")
    print("\n" + sample(models["fused_rnn"], alphabet, "def ", options.sample))


if __name__ == "__main__":
    main()
