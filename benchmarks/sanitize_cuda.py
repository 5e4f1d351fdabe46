"""What compute-sanitizer watches: every CUDA kernel of ours once or twice, on shapes small enough for a checker that is
a hundred times slower. Results are looked at by the suite; here they must only be finite, and computed by our ops.

    compute-sanitizer --tool racecheck --kernel-name kns=fused_rnn python -m benchmarks.sanitize_cuda --limit-s 60

Cases run forward and backward, in f32 and bf16, with limits that force every way of a loop: clusters (where the device
has some), blocks that share nothing, a few blocks that meet at a barrier, one launch a product, products that torch
makes; and as the device is.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
from fused_rnn.bench.providers import OpsSeen
from fused_rnn.diagnostics import gradient_flow

CELLS = (fused_rnn.LSTM, fused_rnn.GRU, fused_rnn.RNN)
DTYPES = (torch.bfloat16, torch.float32)
# T, B, I, H, and what the module is built with
VARIANTS = {
    "plain": (4, 3, 5, 20, {}),
    "bidirectional": (3, 5, 7, 33, {"bidirectional": True}),
    "packed": (5, 4, 6, 24, {}),
    "projection": (3, 3, 5, 24, {"proj_size": 9}),
    "wide": (3, 17, 32, 192, {}),
    "told": (4, 3, 5, 20, {}),  # of its gradients
}
# FUSED_RNN_CUDA_LIMITS, read at every call
LIMITS = (
    "counts=0:2:1:0:1,clusters_first=1",  # few clusters, whose blocks share slices of several rows
    "clusters=0",
    "sms=4,clusters=0",
    "cooperative=0,clusters=0",
    "loops=0",
    "",
)


def run(cell: type[torch.nn.Module], variant: str, dtype: torch.dtype, device: str) -> None:
    steps, rows, features, hidden, options = VARIANTS[variant]
    torch.manual_seed(0)
    module = cell(features, hidden, **options, device=device, dtype=dtype)
    x = torch.randn(steps, rows, features, device=device, dtype=dtype, requires_grad=True)
    lengths = torch.arange(steps, steps - rows, -1).clamp(min=1)
    with gradient_flow(module) if variant == "told" else nullcontext():
        y = module(pack_padded_sequence(x, lengths) if variant == "packed" else x)[0]
    data = y.data if isinstance(y, PackedSequence) else y
    data.float().square().sum().backward()
    with torch.no_grad():  # nothing is saved: another kernel
        module(x)
    for tensor in (data, x.grad, *(parameter.grad for parameter in module.parameters())):
        assert tensor.isfinite().all()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--limit-s", type=float, default=600, help="begin no case after so many seconds")
    parser.add_argument("--device", default="cuda", help="cpu: to try this script where there is no CUDA device")
    options = parser.parse_args(arguments)
    end = time.monotonic() + options.limit_s
    todo = [
        (limits, cell, variant, dtype)
        for variant in VARIANTS
        for dtype in DTYPES
        for limits in LIMITS  # inside: should time run out, every way of a loop has had its turn
        for cell in CELLS
        if variant != "projection" or cell is fused_rnn.LSTM
    ]
    done = 0
    with OpsSeen() as seen:
        for limits, cell, variant, dtype in todo:
            if time.monotonic() > end:
                break
            os.environ["FUSED_RNN_CUDA_LIMITS"] = limits
            print(f"{cell.__name__} {variant} {dtype} {limits or 'no limits'}", flush=True)
            run(cell, variant, dtype, options.device)
            done += 1
    print(f"{done} of {len(todo)} cases ran" + ("" if done == len(todo) else ": out of time"), flush=True)
    if not any(name.startswith("fused_rnn::") for name in seen.names):
        print("no kernel of ours ran: nothing was checked")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
