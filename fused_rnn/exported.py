"""The derivative of a layer in a program of ``torch.export``.

Such a program has no Functions, so what stands in it is an op with a derivative of its own. It keeps nothing for a
backward, as it may never come: that runs the layer once more, with what it needs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import checks, ops
from .autograd import ALL, gradient
from .kept import cells_of
from .transforms import differentiates, transformed

Maybe = Tensor | None


class _ExportedLayer(Function):
    """(x, h0, c0, batch_sizes, reset, seed, numbers, *weights) -> (y, hn, cn, saved) of the op."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h0: Tensor, c0: Maybe, *rest: Any) -> tuple[Tensor, ...]:
        batch_sizes, reset, seed, numbers, *weights = rest
        ctx.cell, _, _, *ctx.options = numbers
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h0, c0, batch_sizes, reset, seed, *weights)
        return _below(x, h0, c0, weights, batch_sizes, reset, seed, numbers)

    @staticmethod
    def backward(ctx: Any, dy: Maybe, dhn: Maybe, dcn: Maybe, dsaved: Maybe) -> tuple:
        x, h0, c0, batch_sizes, reset, seed, *weights = ctx.saved_tensors
        wanted, options = ctx.needs_input_grad, ctx.options
        with torch.no_grad():
            inputs = (x, h0, c0, weights, batch_sizes, ctx.cell, ALL, reset, *options, seed)
            y, _, cn, saved = ops.layer_forward(*inputs)
        dcn, dsaved = (None, None) if c0 is None else (dcn, dsaved)
        dcells = None if dsaved is None or not dsaved.numel() else cells_of(dsaved, y, cn.shape[2])
        needs = sum(bit << i for i, bit in enumerate((*wanted[:3], *wanted[7:])))
        args = (dy, dhn, dcn, dcells, x, h0, c0, y, saved, batch_sizes, reset, seed, ctx.cell, needs, 0, *options)
        dx, dh0, dc0, *dweights = gradient(None, *args, *weights)
        return dx, dh0, dc0, *[None] * 4, *dweights


def _below(
    x: Tensor,
    h0: Tensor,
    c0: Maybe,
    weights: list[Tensor],
    batch_sizes: Maybe,
    reset: Maybe,
    seed: Maybe,
    numbers: tuple,
) -> tuple[Tensor, ...]:
    cell, save, split_f32, initial, variant = numbers
    with torch._C._AutoDispatchBelowAutograd():
        return ops.exported_layer(x, h0, c0, weights, batch_sizes, cell, save, split_f32, reset, initial, variant, seed)


@torch.library.impl("fused_rnn::exported_layer", "Autograd")
def _(
    x: Tensor,
    h0: Tensor,
    c0: Maybe,
    weights: list[Tensor],
    batch_sizes: Maybe,
    cell: int,
    save: int,
    split_f32: bool = False,
    reset: Maybe = None,
    reset_initial: bool = False,
    variant: list[float] | None = None,
    seed: Maybe = None,
) -> tuple[Tensor, ...]:
    numbers = (cell, save, split_f32, reset_initial, variant)
    if transformed():
        raise checks.exported_transform()
    if differentiates(x, h0, c0, *weights):
        outputs: tuple[Tensor, ...] = _ExportedLayer.apply(x, h0, c0, batch_sizes, reset, seed, numbers, *weights)
        return outputs
    return _below(x, h0, c0, weights, batch_sizes, reset, seed, numbers)
