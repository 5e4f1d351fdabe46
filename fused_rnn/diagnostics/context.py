"""The context manager that looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..modules import GRU, LSTM, RNN
from ..recording import Recorder
from .flow import GradientFlow

__all__ = ["gradient_flow"]


@contextmanager
def gradient_flow(module: nn.Module, gates: bool = True) -> Iterator[GradientFlow]:
    """Around an ordinary forward and backward the gradient of every layer, direction and step, as the backward has it::

        with gradient_flow(model) as flow:
            loss(model(x)).backward()
        flow.layers[0].h  # norms of dL/dh_t, [T]

    Calls inside the context are recorded; their backward may run inside or later. Several calls (of truncated BPTT, or
    of several modules) are in ``flow.calls``.

    Args:
        module: an LSTM, GRU or RNN of this package, or a model that holds some (see ``fused_rnn.convert``).
        gates: whether to keep the gates of every step, which the forward has saved for the backward, until ``flow``
            goes; ``recompute`` is put off meanwhile.

    On the CPU and on CUDA the kernels of the backward add up the squares of what they carry; for what has no kernels
    (complex numbers, other devices) hooks on the plain-torch reference do, step by step. ``lengths`` are read while a
    module is looked at: the host waits for a device that has them.

    Raises:
        ValueError: where there is nothing to record.
        RuntimeError: if it is being recorded already; from the calls, under ``torch.compile`` or ``torch.func``, and
            with ``lengths`` that are no plain tensor.
    """
    recorded = [(name, m) for name, m in module.named_modules() if isinstance(m, LSTM | GRU | RNN)]
    if not recorded:
        raise ValueError("gradient_flow found no fused_rnn.LSTM, GRU or RNN: fused_rnn.convert(model) makes them")
    if any(m.recorder is not None for _, m in recorded):
        raise RuntimeError("gradient_flow looks at this module already")
    flow = GradientFlow()
    for name, m in recorded:
        m.recorder = Recorder(name, flow._records, gates)
    try:
        yield flow
    finally:
        for _, m in recorded:
            del m.recorder
