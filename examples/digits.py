"""Reads the handwritten digits that come with scikit-learn, not as images, but each as a sequence of the pixels that
have ink, line by line, 16 to 34 of them, as (row, column, how much). What digit it is, a GRU of two layers and two
directions says by the states in which both directions end, each at an end of the sequence's own (``lengths=``).

    python -m examples.digits [--read rows] [--hidden 48] [--epochs 15] [--least 0.9]

``--read rows`` gives it whole rows of pixels instead, eight steps of eight features, as scan lines. The example asserts
that at least the share ``--least`` of digits that it has not seen is read rightly.
"""

from __future__ import annotations

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

import fused_rnn


def by_ink(images: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 8, 8] -> sequences [N, T, 3], and how long each is [N]."""
    inked = images > 0.25
    points = [
        torch.cat([mask.nonzero() / 7, image[mask][:, None]], 1) for image, mask in zip(images, inked, strict=True)
    ]
    return pad_sequence(points, batch_first=True), inked.sum((1, 2))


def by_rows(images: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 8, 8] as it is, and eight steps each."""
    return images, torch.full((len(images),), 8)


READ = {"ink": by_ink, "rows": by_rows}


class Reader(nn.Module):
    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        options = {"num_layers": 2, "bidirectional": True, "batch_first": True, "connection": "residual"}
        self.gru = fused_rnn.GRU(features, hidden, **options)
        self.head = nn.Linear(2 * hidden, 10)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # [B, T, I], [B] -> [B, 10]
        _, h = self.gru(x, lengths=lengths)  # [L*D, B, H]
        return self.head(torch.cat([h[-2], h[-1]], 1))


def train(reader: Reader, x: Tensor, lengths: Tensor, labels: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(reader.parameters())
    steps = epochs * -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(x)).split(64):
            loss = cross_entropy(reader(x[rows], lengths[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1:2}: loss {total / len(x):.3f}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--read", choices=READ, default="ink")
    parser.add_argument("--hidden", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--least", type=float, default=0.9, help="share of unseen digits that must be read rightly")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)

    images, labels = map(torch.tensor, load_digits(return_X_y=True))
    x, lengths = READ[options.read](images.float().view(-1, 8, 8) / 16)
    unseen, seen = torch.randperm(len(x)).split([360, len(x) - 360])
    print(f"{len(seen)} digits to learn from, {lengths.min()} to {lengths.max()} steps of {x.shape[2]} features")
    reader = Reader(x.shape[2], options.hidden)
    begin = time.perf_counter()
    train(reader, x[seen], lengths[seen], labels[seen], options.epochs)
    with torch.no_grad():
        read = reader(x[unseen], lengths[unseen]).argmax(1)
    share = (read == labels[unseen]).double().mean().item()
    print(f"{share:.1%} of {len(unseen)} unseen digits read rightly, after {time.perf_counter() - begin:.0f} s")
    assert share >= options.least, f"it reads {share:.1%} rightly, less than {options.least:.1%}"


if __name__ == "__main__":
    main()
