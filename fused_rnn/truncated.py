"""Truncated backpropagation through time: a stream in chunks, states carried on, gradients cut off between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

from . import checks
from .network import check_lengths_type, check_packed_reset, check_reset

__all__ = ["truncated_bptt"]

Chunk = tuple[Any, Any, slice]


def truncated_bptt(
    module: Callable[..., tuple[Any, Any]],
    input: Any,
    steps: int,
    hx: Any = None,
    *,
    dim: int | None = None,
    reset: Any = None,
    lengths: Tensor | None = None,
    **options: Any,
) -> Iterator[Chunk]:
    """Calls ``module`` on ``steps`` steps of ``input`` after the other, each call with the state of the one before,
    detached.

    Gradients are those of truncated BPTT(k, k), k = ``steps`` (Williams and Peng 1990): none passes from a chunk into
    an earlier one. ::

        for output, state, part in fused_rnn.truncated_bptt(lstm, x, 50):
            loss = criterion(output, targets[part])
            loss.backward()  # frees the chunk
            optimizer.step()
            optimizer.zero_grad()

    A chunk is computed when it is asked for, with the weights of that moment. Memory is that of one chunk if it is
    backpropagated before the next; losses that are summed up and backpropagated at the end give the same gradients.

    Args:
        module: an LSTM, GRU or RNN of one direction, of this package or of ``torch.nn``, or a model of one: called as
            ``module(chunk, state)``, it returns ``(output, state)``. The state is a tensor, or tuples, lists or dicts
            of such; before the first chunk ``hx``.
        input: [T, B, ..], [B, T, ..], unbatched [T, I], or a PackedSequence.
        steps: k, at least 1; the last chunk may be shorter.
        hx: the first chunk's state, as it is: gradients of that chunk flow into it. Detach what comes from a stream
            that was backpropagated before.
        dim: of ``input``, which is T. Without it, 1 where ``module`` is ``batch_first`` (and the input of an LSTM, GRU
            or RNN not unbatched), else 0.
        reset: as for :class:`fused_rnn.LSTM`, for the whole input; each call gets its part. (``reset_to`` has no place
            here: the state of a chunk is not the initial one.)
        lengths: integers [B], likewise. Rows that have ended keep their state.
        options: more keywords for every call, such as ``cells=True``.

    Yields:
        For each chunk (output, state, part), what ``module`` returned and which steps of ``input`` they were, a slice
        along ``dim``. Of a PackedSequence the outputs are packed, those of the rows that are left in the order in which
        they were, ``part`` tells the rows of its ``data``, and the state has all B rows.

    Raises:
        ValueError: for ``steps`` below 1; two directions, of which one begins at the end of the stream; ``reset_to``;
            ``lengths`` beside a PackedSequence.
        TypeError, RuntimeError: for a reset that does not fit the input, lengths that are not integers. The rest is
            ``module``'s to refuse.
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps must be a positive int, got {steps!r}")
    inner: Any = getattr(module, "_orig_mod", module)  # where torch.compile made one around it
    recurrent = isinstance(inner, RNNBase)
    if recurrent and inner.bidirectional:
        raise ValueError("truncated_bptt takes modules of one direction: the other one begins at the end of the stream")
    if "reset_to" in options:
        raise ValueError("truncated_bptt resets to zero: the initial state is no chunk's")
    if isinstance(input, PackedSequence):
        if lengths is not None:
            raise checks.lengths_of_packed()
        if reset is not None:
            check_packed_reset(reset, input)
        return _packed(module, input, steps, hx, reset, options)
    if reset is not None:
        check_reset(reset, input, input.shape[: reset.dim() if isinstance(reset, Tensor) else 0])
    if lengths is not None:
        check_lengths_type(lengths)
    if dim is None:
        dim = int(getattr(module, "batch_first", False) and not (recurrent and input.dim() == 2))
    if dim < 0:
        dim += input.dim()
    return _padded(module, input, steps, hx, dim, reset, lengths, options)


def _padded(
    module: Callable[..., tuple[Any, Any]],
    input: Tensor,
    steps: int,
    state: Any,
    dim: int,
    reset: Tensor | None,
    lengths: Tensor | None,
    options: dict[str, Any],
) -> Iterator[Chunk]:
    begin = 0
    for chunk in input.split(steps, dim):
        if reset is not None:
            options["reset"] = reset.narrow(dim, begin, chunk.shape[dim])
        if lengths is not None:
            options["lengths"] = lengths.long() - begin  # below zero counts as zero
        output, state = module(chunk, state, **options)
        end = begin + chunk.shape[dim]
        yield output, state, slice(begin, end)
        del output  # what of it nobody holds is gone before the next chunk comes
        begin, state = end, _detached(state)


def _packed(
    module: Callable[..., tuple[Any, Any]],
    input: PackedSequence,
    steps: int,
    state: Any,
    reset: PackedSequence | None,
    options: dict[str, Any],
) -> Iterator[Chunk]:
    """Later chunks have the rows that are left; the states of those that have ended stay as they are."""
    sizes, batch = input.batch_sizes.split(steps), int(input.batch_sizes[0])
    begin = 0
    for own in sizes:
        rows, part = int(own[0]), slice(begin, begin + int(own.sum()))
        there, order = _rows_left(input.sorted_indices, rows, input.data.device)
        if reset is not None:
            options["reset"] = PackedSequence(reset.data[part], own, order)
        chunk, everyone = PackedSequence(input.data[part], own, order), rows == batch
        now = state if everyone else tree_map(lambda s, there=there: s.index_select(1, there), state)
        output, after = module(chunk, now, **options)
        if not everyone:
            after = tree_map(lambda old, new, there=there: old.index_copy(1, there, new), state, after)
        yield output, after, part
        begin, state = part.stop, _detached(after)
        del output, after


def _rows_left(sorted_indices: Tensor | None, rows: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Which rows of the batch the longest ones are, in the batch's order, and how to sort these again."""
    if sorted_indices is None:
        return torch.arange(rows, device=device), None
    there = sorted_indices[:rows]
    return there.sort().values, there.argsort().argsort()


def _detached(state: Any) -> Any:
    return tree_map(lambda part: part.detach() if isinstance(part, Tensor) else part, state)
