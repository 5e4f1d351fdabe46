"""A layer as a differentiable function: first order by the ops, every further one by the reference.

Each of the two ops has a ``torch.autograd.Function`` in ``setup_context`` style with its own vmap and jvp rules, so
that it composes with every ``torch.func`` transform; where there is none, the forward has a leaner one. The derivative
of the backward is that of its definition (the vjp of ``reference.layer``) with respect to the true inputs: ``y`` and
``saved`` are only a memory of the forward, nothing is differentiated through them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import checks, ops, reference
from .autocast import as_they_are
from .folding import Constants, fold, folded_lengths, loop, mapped_size, sample_gradients, unfold
from .higher_order import gradients, pullback, pushforward
from .kept import cells_of, kept_output, shown_and_kept, states_kept
from .reference import Variant, extra_weights
from .transforms import differentiates, transformed

__all__ = ["ALL", "gradient", "layer", "layers_at_once"]

Maybe = Tensor | None
NOTHING, ALL, STATES = map(int, ops.Save)

# Bound functions: every look-up saved is 50 ns of each call.
_is_compiling = torch.compiler.is_compiling
_is_exporting = torch.compiler.is_exporting
_legacy_batched = torch._C._functorch.is_legacy_batchedtensor


def layer(
    x: Tensor,
    h0: Tensor,
    c0: Maybe,
    weights: Sequence[Tensor],
    batch_sizes: Maybe,
    cell: int,
    recompute: bool = False,
    reset: Maybe = None,
    reset_initial: bool = False,
    variant: Variant | None = None,
    seed: Maybe = None,
    cells: bool = False,
    record: Any = None,
) -> tuple[Tensor, Tensor, Maybe, Maybe]:
    """One layer, all its directions, over the whole sequence; shapes as in ``reference.layer``.

    x [T, B, I] or [N, I]; h0 [D, B, R]; c0 [D, B, H] or None -> y [T, B, D*R] or [N, D*R]; hn; cn or None; with
    ``cells`` c of every step, [T, B, D*H] or [N, D*H], else None.
    With ``recompute`` states alone are kept for the backward, which rebuilds the gates of them. reset [T, B] or [N].
    ``variant``: of the cell, None for torch's; ``seed`` [D, B]: of what it draws. ``record``: is told of the gradients
    of every step's states by the backward (``recording.LayerRecord.told``); in eager mode, without transforms.
    """
    save = STATES if recompute else ALL
    if not differentiates(x, h0, c0, *weights) or (_is_exporting() and not transformed()):
        kept = STATES if cells else NOTHING
        inputs = (x, h0, c0, weights, batch_sizes, cell, kept, reset, reset_initial, variant, seed)
        y, hn, cn, saved = ops.layer_forward(*inputs)
        every_c = cells_of(saved, y, cn.shape[2]) if cells else None
        return y, hn, None if c0 is None else cn, every_c
    fixed = (batch_sizes, reset, seed, cell, save, reset_initial, variant, cells)
    if _is_compiling() or transformed():
        # Beyond Dynamo in eager mode too: where a compiled caller broke off, it would come upon the Function's insides.
        apply = partial(_beyond_dynamo, _FusedLayerJvp) if transformed() else _FusedLayerInGraph.apply
        y, hn, cn, every_c, *_ = apply(x, h0, c0, *fixed, *weights)
        return y, hn, None if c0 is None else cn, every_c
    y, hn, *of_c = _apply_eagerly(fixed, x, h0, c0, *weights)
    if record is not None:
        y.grad_fn.record = record  # its ctx
    cn, every_c = (*of_c, None, None)[:2]
    return y, hn, cn, every_c


def layers_at_once(
    x: Tensor,
    h0: Tensor,
    c0: Maybe,
    weights: Sequence[Tensor],
    batch_sizes: Maybe,
    cell: int,
    layers: int,
    reset: Maybe,
    reset_initial: bool,
    variant: Variant | None,
) -> tuple[Tensor, Tensor, Maybe] | None:
    """Several layers of one direction by one op, which walks them side by side where that pays: y of the last, hn, cn
    of all (or None). None where each must be a call of :func:`layer`: something is differentiated, or not on the CPU.

    h0 [layers, B, R] and c0 [layers, B, H], or [1, ..] for all of them.
    """
    if not x.is_cpu or _is_compiling() or differentiates(x, h0, c0, *weights):
        return None
    inputs = (x, h0, c0, weights, batch_sizes, cell, layers, reset, reset_initial, variant)
    y, hn, cn = ops.stack_forward(*inputs)
    return y, hn, None if c0 is None else cn


def _lowered(function: type[Function], *args: Any) -> tuple:
    """Calls ``function`` from its vmap rule, one transform lower: the bare op will do unless that one is watching."""
    if differentiates(*(a for a in args if isinstance(a, Tensor))):
        return function.apply(*args)
    return function.forward(*args)


class _FusedLayer(Function):
    """((batch_sizes, reset, seed, cell, save, reset_initial, variant, cells), x, h0, c0, *weights) ->
    (y, hn), an LSTM's cn, with ``cells`` every c, where no transform is active and nothing is compiled.

    Half of what a short call costs is torch's part in it, a microsecond for each argument and each output: so in the
    older style, what the backward needs is no output, and what has no derivative is one argument.
    """

    @staticmethod
    def forward(ctx: Any, fixed: tuple, x: Tensor, h0: Tensor, c0: Maybe, *weights: Tensor) -> tuple:
        batch_sizes, reset, seed, cell, save, reset_initial, variant, cells = fixed
        inputs = (x, h0, c0, weights, batch_sizes, cell, save, reset, reset_initial, variant, seed)
        y, hn, cn, saved = ops.layer_forward(*inputs)
        ctx.cell, ctx.options, ctx.compiled, ctx.record = cell, (reset_initial, variant), False, None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h0, c0, batch_sizes, reset, seed, kept_output(y, c0), saved, *weights)
        if c0 is None:
            return y, hn
        return (y, hn, cn, cells_of(saved, y, cn.shape[2])) if cells else (y, hn, cn)

    @staticmethod
    def backward(ctx: Any, dy: Maybe, dhn: Maybe, dcn: Maybe = None, dcells: Maybe = None) -> tuple:
        return None, *_derivative(ctx, dy, dhn, dcn, dcells, ctx.needs_input_grad[1:])


def _needs(wanted: tuple[bool, ...]) -> int:
    """As the op wants them told: bits, the first one the lowest."""
    needs = 0
    for i, asked in enumerate(wanted):
        needs |= asked << i
    return needs


def _derivative(ctx: Any, dy: Maybe, dhn: Maybe, dcn: Maybe, dcells: Maybe, wanted: tuple[bool, ...]) -> tuple:
    """The backward of one of these Functions: (dx, dh0, dc0, *dweights), None where ``wanted`` does not ask for it."""
    if dy is None and dhn is None and dcn is None and dcells is None:
        return (None,) * len(wanted)
    x, h0, c0, batch_sizes, reset, seed, y, saved, *weights = ctx.saved_tensors
    fixed = (batch_sizes, reset, seed, ctx.cell, _needs(wanted), 0, *ctx.options)
    dcn = None if c0 is None else dcn  # a graph makes zeros for what nothing came to
    args = (dy, dhn, dcn, dcells, x, h0, c0, y, saved, *fixed, *weights)
    if ctx.compiled:  # torch itself refuses further derivatives of a compiled layer
        return _FusedLayerGradient.forward(*args)
    if _is_compiling():  # Dynamo comes upon backwards of layers that ran outside of it too
        return _beyond_dynamo(_FusedLayerGradient, *args)
    return gradient(ctx.record, *args)


class _FusedLayerInGraph(Function):
    """(x, h0, c0, batch_sizes, reset, seed, cell, save, reset_initial, variant, cells, *weights) ->
    (y, hn, cn, every c, saved, kept y), for graphs, where the states kept follow, and under transforms, whose rules
    must see all that is kept.

    Without a jvp rule, as Dynamo refuses Functions that have it. In a graph what is kept are states and outputs that
    nobody else has (``kept.py``), and a copy of x, which compilers leave out: so it is safe from what follows in the
    graph, but for an x that is an argument of it.
    """

    @staticmethod
    def forward(*args: Any) -> tuple:
        x, h0, c0, batch_sizes, reset, seed, cell, save, reset_initial, variant, cells, *weights = args
        if in_graph := _is_compiling():
            h0, c0 = states_kept(h0, c0)
        inputs = (x, h0, c0, weights, batch_sizes, cell, save, reset, reset_initial, variant, seed)
        y, hn, cn, saved = ops.layer_forward(*inputs)
        every_c = cells_of(saved, y, cn.shape[2]) if cells else None
        if in_graph:
            y, kept = shown_and_kept(y)
            return y, hn, cn, every_c, saved, kept, h0, c0
        kept = kept_output(y, c0)
        return y, hn, cn, every_c, saved, None if kept is y else kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, h0, c0, batch_sizes, reset, seed, cell, _, reset_initial, variant, _, *weights = inputs
        y, _, cn, _, saved, kept, *own = output
        if own:
            h0, c0 = own
            x = x.clone()
        ctx.cell, ctx.options, ctx.compiled, ctx.record = cell, (reset_initial, variant), _is_compiling(), None
        ctx.set_materialize_grads(False)
        constants = [tensor for tensor in (cn if c0 is None else None, saved, kept, *own) if tensor is not None]
        ctx.mark_non_differentiable(*constants)
        ctx.save_for_backward(x, h0, c0, batch_sizes, reset, seed, y if kept is None else kept, saved, *weights)

    @staticmethod
    def backward(ctx: Any, dy: Maybe, dhn: Maybe, dcn: Maybe, dcells: Maybe, *_: None) -> tuple:
        wanted = ctx.needs_input_grad
        dx, dh0, dc0, *dweights = _derivative(ctx, dy, dhn, dcn, dcells, wanted[:3] + wanted[11:])
        return dx, dh0, dc0, *[None] * 8, *dweights

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[tuple, tuple]:
        x, h0, c0, batch_sizes, reset, seed, *numbers, cells = args[:11]
        size = mapped_size(info)
        if any(dim is not None for dim in in_dims[11:]):
            return loop(partial(_lowered, _FusedLayerJvp), size, in_dims, args)
        lengths = folded_lengths(batch_sizes, in_dims[3], size)
        rows = 1 if batch_sizes is None else 0
        x, reset = fold(x, in_dims[0], rows, size), fold(reset, in_dims[4], rows, size)
        h0, c0 = fold(h0, in_dims[1], 1, size), fold(c0, in_dims[2], 1, size)
        seed = fold(seed, in_dims[5], 1, size)
        inputs = (x, h0, c0, lengths, reset, seed, *numbers, cells, *args[11:])
        y, hn, cn, every_c, saved, kept = _lowered(_FusedLayerJvp, *inputs)
        cn, cn_dim = (cn, None) if c0 is None else (unfold(cn, 1, size), 2)
        alike = (unfold(of, rows, size) for of in (y, every_c, kept))
        y, every_c, kept = alike
        outputs = (y, unfold(hn, 1, size), cn, every_c, unfold(saved, 1, size), kept)
        dims = (rows + 1, 2, cn_dim, rows + 1 if cells else None, 2, None if kept is None else rows + 1)
        return outputs, dims


class _FusedLayerJvp(_FusedLayerInGraph):
    """The same with a jvp rule."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        _FusedLayerInGraph.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:6], *inputs[11:])
        ctx.cells = inputs[10]

    @staticmethod
    def jvp(ctx: Any, *tangents: Maybe) -> tuple[Maybe, ...]:
        x, h0, c0, batch_sizes, reset, seed, *weights = ctx.saved_tensors

        def definition(x: Tensor, h0: Tensor, c0: Maybe, *weights: Tensor) -> tuple:
            options = (None, reset, *ctx.options, seed, ctx.cells)
            outputs = reference.layer(x, h0, c0, weights, batch_sizes, ctx.cell, *options)
            return tuple(output for output in outputs if output is not None)

        pushed = pushforward(definition, (x, h0, c0, *weights), tangents[:3] + tangents[11:])
        return *pushed, *[None] * (6 - len(pushed))


def _needs_more_than_gates(variant: Variant, cell: int, each: int) -> bool:
    """Whether the gradients of gates and what is kept are not enough for those of the weights, ``each`` a direction:
    statistics stand between the gates' and those of the products; or zoneout has thrown away the c that o saw."""
    projected = each - len(extra_weights(cell, variant)) in (3, 5)
    return variant.layer_norm or (variant.zoneout_c > 0 and (projected or variant.peephole))


class _FusedLayerGradient(Function):
    """The derivative of that.

    (dy, dhn, dcn, dcells, x, h0, c0, y, saved, batch_sizes, reset, seed, cell, needs, samples, reset_initial, variant,
    *weights) ->
    (dx, dh0, dc0, *dweights).

    What ``needs`` does not ask for is None. With ``samples`` = V > 0 the batch holds V examples folded into it, and
    each weight gradient is [V, *weight.shape], one for each example.
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Maybe, ...]:
        return _FusedLayerGradient.run(None, *args)

    @staticmethod
    def run(record: Any, *args: Any) -> tuple[Maybe, ...]:
        """By the ops, which tell ``record`` of the gradients inside of the sequence, where it is not None."""
        dy, dhn, dcn, dcells, x, h0, c0, y, saved, *fixed = args[:17]
        batch_sizes, reset, seed, cell, needs, samples, initial, variant = fixed
        weights = args[17:]
        inputs = (dy, dhn, dcn, x, h0, c0, weights, y, saved, batch_sizes, cell)
        grads: tuple[Maybe, ...]
        if samples and variant is not None and _needs_more_than_gates(variant, cell, len(weights) // h0.shape[0]):
            return _by_definition(Constants(*fixed), *args[:7], *weights)
        if not samples:
            tell = record is not None
            *others, own = ops.layer_backward(*inputs, needs, reset, initial, variant, seed, dcells, tell)
            if tell:
                record.told(own.pop(), saved, y)
            grads = (*others, *own)
        else:
            gates = ops.layer_backward_gates(*inputs, reset, initial, variant, seed, dcells)
            with as_they_are(x):
                dx, dweights = sample_gradients(gates[2:], x, h0, c0, weights, y, saved, Constants(*fixed))
            grads = (dx, *gates[:2], *dweights)
        return tuple([grad if needs >> i & 1 else None for i, grad in enumerate(grads)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        true, weights = inputs[:7], inputs[17:]
        batch_sizes, reset, seed, *ctx.numbers = inputs[9:17]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(batch_sizes, reset, seed, *true, *weights)
        ctx.save_for_forward(batch_sizes, reset, seed, *true, *weights)

    @staticmethod
    def backward(ctx: Any, *douts: Maybe) -> tuple[Maybe, ...]:
        batch_sizes, reset, seed, *true = ctx.saved_tensors
        # A gradient nothing was made of needs no recomputation.
        needs = sum(1 << i for i, dout in enumerate(douts) if dout is not None)
        constants = Constants(batch_sizes, reset, seed, *ctx.numbers)._replace(needs=needs)
        wanted = ctx.needs_input_grad[:7] + ctx.needs_input_grad[17:]
        grads = pullback(partial(gradients, constants), true, wanted, tuple(dout for dout in douts if dout is not None))
        return *grads[:7], *[None] * 10, *grads[7:]

    @staticmethod
    def jvp(ctx: Any, *tangents: Maybe) -> tuple[Maybe, ...]:
        batch_sizes, reset, seed, *true = ctx.saved_tensors
        constants = Constants(batch_sizes, reset, seed, *ctx.numbers)
        pushed = iter(pushforward(partial(gradients, constants), true, tangents[:7] + tangents[17:]))
        return tuple(next(pushed) if constants.needs >> i & 1 else None for i in range(len(true) - 4))

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[tuple, tuple]:
        batch_sizes, reset, seed, cell, needs, samples, *options = args[9:17]
        size = mapped_size(info)
        if any(dim is not None for dim in in_dims[17:]):
            return loop(partial(_lowered, _FusedLayerGradient), size, in_dims, args)
        lengths = folded_lengths(batch_sizes, in_dims[9], size)
        rows = 1 if batch_sizes is None else 0
        row_dims = (rows, 1, 1, rows, rows, 1, 1, rows, 1)
        folded = (fold(a, dim, row, size) for a, dim, row in zip(args[:9], in_dims[:9], row_dims, strict=True))
        reset, seed = fold(reset, in_dims[10], rows, size), fold(seed, in_dims[11], 1, size)
        together = max(samples, 1) * size if needs >> 3 else 0
        inputs = (*folded, lengths, reset, seed, cell, needs, together, *options, *args[17:])
        dx, dh0, dc0, *dweights = _lowered(_FusedLayerGradient, *inputs)
        grads = [unfold(dx, rows, size), unfold(dh0, 1, size), unfold(dc0, 1, size)]
        if samples:  # [V*W, ..] -> [V, W, ..]
            grads += [unfold(grad, 0, size) for grad in dweights]
        else:
            grads += dweights
        dims = (rows + 1, 2, 2, *[1 if samples else 0] * len(dweights))
        return tuple(grads), tuple(None if g is None else dim for g, dim in zip(grads, dims, strict=True))


def _by_definition(constants: Constants, *inputs: Maybe) -> tuple[Maybe, ...]:
    """Of (dy, dhn, dcn, dcells, x, h0, c0, *weights), by the reference: (dx, dh0, dc0, *dweights) or None each."""
    asked = iter(gradients(constants, *inputs))
    return tuple(next(asked) if constants.needs >> i & 1 else None for i in range(len(inputs) - 4))


def _fast_apply(function: type[Function]) -> Callable:
    """``function.apply`` without its Python part, which binds default arguments for 20 us a call; all arguments but the
    first are tensors or None.

    Only where no functorch transform is active. Tensors that outlived theirs are unwrapped, as the Python part does.
    """
    try:
        apply = super(Function, function).apply  # type: ignore[misc]
        unwrap = torch._C._functorch.unwrap_if_dead
    except AttributeError:  # a torch that has these elsewhere
        return function.apply
    return lambda fixed, *args: apply(fixed, *[arg if arg is None else unwrap(arg) for arg in args])


_apply_eagerly = _fast_apply(_FusedLayer)


def gradient(record: Any, *args: Any) -> tuple[Maybe, ...]:
    """What ``_FusedLayerGradient`` makes of its arguments, (dx, dh0, dc0, *dweights), in the mode that a backward runs
    in; ``record`` is told as in :func:`layer`."""
    if any(dout is not None and _legacy_batched(dout) for dout in args[:4]):
        # is_grads_batched: a mapping that no Function sees and no op without a rule survives.
        if record is not None:
            raise checks.recorded_batch()
        return _by_definition(Constants(*args[9:17]), *args[:7], *args[17:])
    if torch.is_grad_enabled() or transformed():
        if record is not None:
            _FusedLayerGradient.run(record, *args)
        grads: tuple[Maybe, ...] = _FusedLayerGradient.apply(*args)
        return grads
    return _FusedLayerGradient.run(record, *args)  # without create_graph nothing is differentiated again


@torch._dynamo.disable
def _beyond_dynamo(function: type[Function], *args: Any) -> tuple:
    """A graph break, where Dynamo would inline the forward and derive the bare op, which has no derivative."""
    return function.apply(*args)
