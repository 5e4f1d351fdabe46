"""The console script ``fused-rnn``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def info() -> int:
    """What is installed and what would run, for a bug report."""
    import torch

    from .bench.header import header, lines

    print("\n".join(lines(header("cuda" if torch.cuda.is_available() else "cpu"))))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    from .bench import run

    parser = argparse.ArgumentParser(
        prog="fused-rnn", description="LSTM, GRU and RNN for PyTorch with fused time loops."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, threads and instruction sets in force")
    bench = commands.add_parser(
        "bench",
        help="measure speed and memory beside nn.*",
        description="Measures our modules beside nn.* and other peers; a wrong result is refused, not timed.",
    )
    run.add_arguments(bench)
    options = parser.parse_args(arguments)
    if options.command == "info":
        return info()
    return run.run(options)


if __name__ == "__main__":
    raise SystemExit(main())
