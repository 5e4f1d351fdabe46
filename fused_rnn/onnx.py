"""Models to ONNX. ``torch.onnx.export`` needs no help with modules of this package; a program of ``torch.export`` does.

Weights alone, in both directions: :mod:`fused_rnn.interchange`. More in docs/interchange.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from . import checks
from .ops import ONNX_DECOMPOSITIONS

__all__ = ["lower"]


def lower(program: ExportedProgram) -> ExportedProgram:
    """``program`` with the ops of this package replaced by ONNX nodes, for ``torch.onnx.export``.

    For example::

        torch.onnx.export(fused_rnn.onnx.lower(torch.export.export(model, (x,))))

    The result is for an exporter only: torch computes zeros where such a node stands.

    Raises:
        NotImplementedError: for packed sequences, ``reset``, ``cells``, bfloat16 and some variants of cells
            (docs/interchange.md), of which ONNX's nodes know nothing; for ``lengths`` of an LSTM or a relu RNN, which
            such a program makes of ``cells`` and ``reset``; for dropout in training but that between layers.
    """
    nodes = program.graph.nodes
    if any(node.target in ONNX_DECOMPOSITIONS and _reads_saved(node) for node in nodes):
        raise checks.onnx_cells()
    if any(node.target is torch.ops.aten.dropout.default and _is_constant(node) for node in nodes):
        raise checks.onnx_drawn()
    return program.run_decompositions(ONNX_DECOMPOSITIONS)


def _is_constant(dropout: Node) -> bool:
    """Whether an exporter would keep what was drawn once: a mask for all steps, made of ones, or weights of a layer."""
    dropped, _, training = dropout.args
    if not training:
        return False
    of_ones = isinstance(dropped, Node) and dropped.target is torch.ops.aten.ones.default
    layers = [user.args[3] for user in dropout.users if user.target in ONNX_DECOMPOSITIONS]
    return of_ones or any(isinstance(weights, Sequence) and dropout in weights for weights in layers)


def _reads_saved(op: Node) -> bool:
    """Whether a graph looks at what a layer keeps, the last of its four outputs: c of every step is there."""
    return any(output.args[1] == 3 and output.users for output in op.users)
