"""The console script ``fused-rnn``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .arguments import natural, positive


def info(options: argparse.Namespace) -> int:
    """What is installed and what would run, for a bug report."""
    import torch

    from .bench.header import header, lines
    from .ops import WITHOUT_CUDA

    print("\n".join(lines(header("cuda" if torch.cuda.is_available() else "cpu"))))
    print(f"CUDA kernels: {f'none, as {WITHOUT_CUDA}' if WITHOUT_CUDA else 'built'}")
    if options.module is None:
        return 0

    import fused_rnn

    from .planning import plans

    sizes = {"num_layers": options.layers, "bidirectional": options.bidirectional}
    if options.projection:
        sizes["proj_size"] = options.projection
    try:
        module = getattr(fused_rnn, options.module)(
            1, options.hidden, device="meta", dtype=getattr(torch, options.dtype), **sizes
        )
        found = list(plans(module, options.batch, options.steps, options.on))
    except (ValueError, TypeError, RuntimeError) as error:
        raise SystemExit(f"fused-rnn info: {error}") from None
    print(f"\n{module}, {options.dtype}, {options.steps} steps of {options.batch} rows on {options.on}:")
    for name, plan in found:
        print(f"  {name}: " + ", ".join(f"{key} {value}" for key, value in plan.items()))
    return 0


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("module", nargs="?", choices=["LSTM", "GRU", "RNN"], help="how its loops would be launched")
    parser.add_argument("--hidden", type=positive, default=256)
    parser.add_argument("--projection", type=natural, default=0)
    parser.add_argument("--layers", type=positive, default=1)
    parser.add_argument("--bidirectional", action="store_true")
    parser.add_argument("--batch", type=positive, default=32)
    parser.add_argument("--steps", type=positive, default=100)
    parser.add_argument("--dtype", choices=["float32", "float64", "bfloat16", "float16"], default="float32")
    parser.add_argument("--on", default="h200", help="h200, h100 or a100, or cuda for the one that is there")


def main(arguments: Sequence[str] | None = None) -> int:
    from .bench import run
    from .diagnostics import command

    parser = argparse.ArgumentParser(
        prog="fused-rnn", description="LSTM, GRU and RNN for PyTorch with fused time loops."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_info(commands.add_parser("info", help="versions, threads, instruction sets in force; what a GPU would run"))
    bench = commands.add_parser(
        "bench",
        help="measure speed and memory beside nn.*",
        description="Measures our modules beside nn.* and other peers; a wrong result is refused, not timed.",
    )
    run.add_arguments(bench)
    gradflow = commands.add_parser(
        "gradflow",
        help="what becomes of the gradient on its way through time",
        description="Norms of dL/dh_t and dL/dc_t in a fresh network, as a table, in words and as PNG.",
    )
    command.add_arguments(gradflow)
    options = parser.parse_args(arguments)
    runs = {"info": info, "gradflow": command.run, "bench": run.run}
    try:
        outcome = runs[options.command](options)
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on, as behind `| head`: no more of it, and nothing at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return outcome


if __name__ == "__main__":
    raise SystemExit(main())
