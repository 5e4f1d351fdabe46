"""The derivatives that no kernel computes: vjp and jvp of the reference, nested as deep as asked.

Everything goes through ``torch.func.vjp``: it nests, also under every other transform, and what it returns is itself
differentiable in the ordinary way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import reference
from .autocast import as_they_are
from .folding import Constants, unfold

__all__ = ["gradients", "pullback", "pushforward"]

Maybe = Tensor | None


def gradients(constants: Constants, *inputs: Maybe) -> tuple[Tensor, ...]:
    """The definition of the backward: of (dy, dhn, dcn, dcells, x, h0, c0, *weights) the gradients ``needs`` asks for.

    Shapes and ``samples`` as in ``autograd._FusedLayerGradient``; what is not asked for is left out.
    """
    if constants.samples:
        return _sample_gradients(constants, *inputs)
    batch_sizes, reset, seed, cell, needs, _, initial, variant = constants
    douts, args = inputs[:4], inputs[4:]
    given = [i for i, dout in enumerate(douts) if dout is not None]

    def outputs(x: Tensor, h0: Tensor, c0: Maybe, *weights: Tensor) -> tuple[Any, ...]:
        cells = douts[3] is not None
        every = reference.layer(x, h0, c0, weights, batch_sizes, cell, None, reset, initial, variant, seed, cells)
        return tuple(every[i] for i in given)

    wanted = [bool(needs >> i & 1) for i in range(len(args))]
    grads = pullback(outputs, args, wanted, tuple(dout for dout in douts if dout is not None))
    return tuple(grad for grad in grads if grad is not None)


def _sample_gradients(constants: Constants, *inputs: Maybe) -> tuple[Tensor, ...]:
    """The same where the batch holds ``samples`` examples: mapped over them."""
    needs, samples = constants.needs, constants.samples
    rows = 1 if constants.batch_sizes is None else 0
    row_dims = (rows, 1, 1, rows, rows, 1, 1)
    reset, seed = unfold(constants.reset, rows, samples), unfold(constants.seed, 1, samples)
    of_one = constants._replace(batch_sizes=constants.lengths_of_one(), samples=0)
    unfolded = [unfold(a, row, samples) for a, row in zip(inputs[:7], row_dims, strict=True)]
    in_dims = tuple(None if a is None else row + 1 for a, row in zip(unfolded, row_dims, strict=True))
    out_dims = (rows + 1, 2, 2, *[0] * (len(inputs) - 7))
    asked = [i for i in range(len(inputs) - 4) if needs >> i & 1]
    mapped = torch.vmap(
        lambda reset, seed, *inputs: gradients(of_one._replace(reset=reset, seed=seed), *inputs),
        in_dims=(reset if reset is None else rows + 1, seed if seed is None else 2, *in_dims)
        + (None,) * (len(inputs) - 7),
        out_dims=tuple(out_dims[i] for i in asked),
    )
    grads = mapped(reset, seed, *unfolded, *inputs[7:])
    return tuple(g.flatten(out_dims[i] - 1, out_dims[i]) if i < 3 else g for i, g in zip(asked, grads, strict=True))


def _restricted(function: Callable, args: Sequence[Maybe], places: Sequence[int]) -> Callable:
    """``function`` as one of the arguments at ``places``, the others staying as they are."""

    def restricted(*some: Tensor) -> Any:
        every = list(args)
        for place, value in zip(places, some, strict=True):
            every[place] = value
        return function(*every)

    return restricted


def pullback(
    function: Callable, args: Sequence[Maybe], wanted: Sequence[bool], douts: tuple[Tensor, ...]
) -> tuple[Maybe, ...]:
    """The vjp of ``function`` at ``args``: a gradient where ``wanted``, None elsewhere."""
    places = [i for i, want in enumerate(wanted) if want and args[i] is not None]
    if not places or not douts:
        return (None,) * len(args)
    grads: list[Maybe] = [None] * len(args)
    with as_they_are(douts[0]):
        pull = torch.func.vjp(_restricted(function, args, places), *(args[i] for i in places))[1]
        for place, grad in zip(places, pull(douts), strict=True):
            grads[place] = grad
    return tuple(grads)


def pushforward(function: Callable, args: Sequence[Maybe], tangents: Sequence[Maybe]) -> tuple[Tensor, ...]:
    """The jvp of ``function`` at ``args`` as the vjp of its vjp: forward mode does not nest in a bare dual level."""
    places = [i for i, tangent in enumerate(tangents) if tangent is not None]
    # Torch calls a jvp rule with forward mode switched off, for outer levels too: left so, a jvp of a jvp is silently
    # wrong. Switched on, the tangent of this level, which the arguments still carry, must go.
    with forward_ad._set_fwd_grad_enabled(True), as_they_are(next(a for a in args if a is not None)):
        args = [None if a is None else forward_ad.unpack_dual(a).primal for a in args]
        outputs, pull = torch.func.vjp(_restricted(function, args, places), *(args[i] for i in places))[:2]
        push = torch.func.vjp(pull, tuple(torch.zeros_like(output) for output in outputs))[1]
        return push(tuple(tangents[i] for i in places))[0]
