"""Forecasts sunspots: yearly numbers since 1700, a series that comes with statsmodels. An LSTM reads year after year
and says what the next one brings; it learns from the years before 1929 and is judged by those after, each forecast from
all years before it. The series is one stream, so it learns by truncated backpropagation through time
(docs/truncated_bptt.md).

    python -m examples.forecasting [--hidden 32] [--epochs 60] [--steps 44] [--out FOLDER]

Beside it stand persistence (next year as this year), and an autoregression of nine years fitted by least squares, as
statisticians do. The example asserts that the LSTM's error is below three quarters of persistence's.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from statsmodels.datasets import sunspots
from torch import Tensor, nn

import fused_rnn

FIRST_UNSEEN = 1929
LEAST = 0.75  # of persistence's error


class Forecaster(nn.Module):
    """Reads each year's number and how it differs from the one before, and says how the next will differ from it."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.lstm = fused_rnn.LSTM(2, hidden)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = self.lstm(x, state)  # [T, B, 2] -> [T, B, H]
        return x[..., :1] + self.head(y), state  # [T, B, 1]


def train(model: Forecaster, x: Tensor, epochs: int, steps: int) -> None:
    """x [T, 1, 2]: the number of each step is to be said from those before."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    past, future = x[:-1], x[1:, :, :1]
    for epoch in range(epochs):
        losses = []
        for forecast, _, part in fused_rnn.truncated_bptt(model, past, steps):
            loss = (forecast - future[part]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3}: squared error {sum(losses) / len(losses):.4f}", flush=True)


def autoregression(x: Tensor, seen: int, order: int = 9) -> Tensor:
    """Forecasts of x[order:], x [T], each linear in the ``order`` numbers before it, fitted to the first ``seen``."""
    rows = torch.cat([x.unfold(0, order, 1)[:-1], torch.ones(len(x) - order, 1, dtype=x.dtype)], 1)
    weights = torch.linalg.lstsq(rows[: seen - order], x[order:seen, None]).solution
    return (rows @ weights).flatten()


def plot(years: Tensor, truth: Tensor, forecast: Tensor, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3))
    axes.plot(years, truth, label="sunspots")
    axes.plot(years, forecast, label="forecast a year ahead")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=44, help="of a chunk: four cycles of the sun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a folder for the plot")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)

    table = sunspots.load_pandas().data
    years, numbers = torch.tensor(table["YEAR"].to_numpy()), torch.tensor(table["SUNACTIVITY"].to_numpy())
    seen = int((years < FIRST_UNSEEN).sum())
    roots = numbers.sqrt()  # so that what varies does so as much at low numbers as at high ones
    mean, scale = roots[:seen].mean(), roots[:seen].std()
    series = (roots - mean) / scale
    x = torch.stack([series, series.diff(prepend=series[:1])], 1).float().unsqueeze(1)  # [T, 1, 2]

    model, begin = Forecaster(options.hidden), time.perf_counter()
    train(model, x[:seen], options.epochs, options.steps)
    with torch.no_grad():
        forecasts = {"LSTM": model(x[:-1])[0].flatten().double()[seen - 1 :]}
    forecasts["autoregression"] = autoregression(series, seen)[seen - len(x) :]
    forecasts = {name: (values * scale + mean).clamp(min=0).square() for name, values in forecasts.items()}
    forecasts["persistence"] = numbers[seen - 1 : -1]
    truth = numbers[seen:]
    errors = {name: (values - truth).square().mean().sqrt().item() for name, values in forecasts.items()}
    print(
        f"root of the mean squared error over the {len(truth)} years from {FIRST_UNSEEN} on, after "
        f"{time.perf_counter() - begin:.0f} s:"
    )
    for name, error in errors.items():
        print(f"  {name:15} {error:5.1f}")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        plot(years[seen:], truth, forecasts["LSTM"], options.out / "forecasting.png")
    share = errors["LSTM"] / errors["persistence"]
    assert share < LEAST, f"its error is {share:.2f} of persistence's, not below {LEAST}"


if __name__ == "__main__":
    main()
