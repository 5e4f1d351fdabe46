"""Every cell in plain torch, one step at a time: the specification of what the kernels compute.

It is the oracle of the tests and the path of every derivative beyond the first. Nothing is changed in place and
nothing is narrowed out of a whole sequence inside the loop, so it is differentiable to any order, runs under every
``torch.func`` transform and in every dtype (complex ones too), and its cost is linear in the number of steps.

Sizes, here and in the other files: ``T`` steps, ``B`` rows, ``I`` input features, ``H`` hidden units, ``P`` projected
size, ``R = P or H`` the size of h, ``D`` directions, ``G`` gates, ``N`` rows of the whole sequence (``T*B``, or the
sum of ``batch_sizes``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .kinds import Activation, Cell, Variant, Weights, extra_weights, gates_of, kept_gates, split_weights
from .regularisation import recurrent_mask, with_clip, with_dropout, with_zoneout

__all__ = [
    "Activation",
    "Cell",
    "Taps",
    "Variant",
    "Watch",
    "Weights",
    "activations",
    "extra_weights",
    "gates_of",
    "kept_gates",
    "layer",
    "split_weights",
]

State = tuple[Tensor, ...]  # (h, c) for an LSTM, (h,) for the others
Function = Callable[[Tensor], Tensor]
NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's


class Watch(Protocol):
    """Who sees every state pass, and may return it as views, whose gradients are those of the ways that they go."""

    def after_step(self, direction: int, t: int, state: State) -> State:
        """The state that step t of a direction leaves -> the same, on its way to the next step or the end."""

    def before_step(self, direction: int, t: int, state: State) -> tuple[Tensor, State]:
        """The state that step t begins from, from where on gradients are not clipped -> its h for W_hh, and the whole
        for what goes past W_hh."""


class Taps(NamedTuple):
    """Terms added to inner values, per row of x; their gradients are those of the values (``layer_backward_gates``)."""

    gx: Tensor  # [N, D*G*H], added to x W_ih^T + b_ih
    gh: Tensor | None  # [N, D*H], added to W_hn h + b_hn; GRU only, and not where r comes before the product
    r: Tensor | None  # [N, D*P], added to the projected h_t; projection only


class _Inner(NamedTuple):
    """What stays the same over the steps of one direction."""

    weights: Weights
    sigmoid: Function  # or what a variant has in its place
    tanh: Function


def _product(x: Tensor, w: Tensor, bias: Tensor | None, gain: Tensor | None) -> Tensor:
    """x w^T + bias, or with a gain layer normalisation between the two: over all gates of a row together, as Ba et al.
    2016 have it, with torch's epsilon. x [n, K], w [G*H, K] -> [n, G*H]."""
    if gain is None:
        return F.linear(x, w, bias)
    normal = _normalised(F.linear(x, w), gain)
    return normal if bias is None else normal + bias


def _normalised(x: Tensor, gain: Tensor, shift: Tensor | None = None) -> Tensor:
    """Layer normalisation of each row (Ba et al. 2016), 16 bits by way of 32 as torch's does it. Not ``F.layer_norm``
    itself: its third derivatives are wrong, and its second ones where the first is forward mode (torch 2.13)."""
    wide = x.float() if x.dtype.itemsize < 4 else x
    off = wide - wide.mean(-1, keepdim=True)
    normal = off * torch.rsqrt(off.square().mean(-1, keepdim=True) + NORM_EPSILON) * gain
    return (normal if shift is None else normal + shift).to(x.dtype)


def _recurrent(inner: _Inner, seen: Tensor) -> Tensor:
    """What a step makes by W_hh and b_hh of what they see of h, [n, R] -> [n, G*H]."""
    return _product(seen, inner.weights.w_hh, inner.weights.b_hh, inner.weights.ln_hh)


def _lstm_step(
    inner: _Inner, state: State, seen: Tensor, gx: Tensor, tap_gh: Tensor | None, tap_r: Tensor | None
) -> State:
    """Long short-term memory (Hochreiter & Schmidhuber 1997) with forget gate (Gers et al. 2000); gates i, f, g, o.

    i, f, o = sigmoid(.), g = tanh(.); c' = f c + i g; h' = o tanh(c'). With ``w_hr`` h' is W_hr (o tanh(c'))
    (Sak et al. 2014). With ``w_ch`` i and f have p_i c and p_f c added inside, and o p_o c' (peepholes, Gers &
    Schmidhuber 2000). Coupled, i = 1 - f (Greff et al. 2017). With ``ln_*`` both products and the c' of h' are
    normalised (Ba et al. 2016). gx [n, G*H], h and what W_hh sees of it [n, R], c [n, H].
    """
    c = state[1]
    weights, H = inner.weights, c.shape[-1]
    *i, f, g, o = (gx + _recurrent(inner, seen)).split(H, -1)  # coupled: no i
    if weights.w_ch is not None:
        *p_i, p_f, p_o = weights.w_ch.split(H)
        i, f = [x + p * c for x, p in zip(i, p_i, strict=True)], f + p_f * c
    forget = inner.sigmoid(f)
    c = forget * c + (inner.sigmoid(i[0]) if i else 1 - forget) * inner.tanh(g)
    if weights.w_ch is not None:
        o = o + p_o * c
    shown = c if weights.ln_ch is None else _normalised(c, weights.ln_ch, weights.ln_ch_shift)
    h = inner.sigmoid(o) * inner.tanh(shown)
    if inner.weights.w_hr is not None:
        h = F.linear(h, inner.weights.w_hr)
        h = h if tap_r is None else h + tap_r
    return h, c


def _gru_step(
    inner: _Inner, state: State, seen: Tensor, gx: Tensor, tap_gh: Tensor | None, tap_r: Tensor | None
) -> State:
    """Gated recurrent unit (Cho et al. 2014) as torch and cuDNN write it; gates r, z, n.

    The reset gate multiplies W_hn h + b_hn, after the product: n = tanh(x_n + r (W_hn h + b_hn)), and the update
    gate keeps the old state: h' = (1 - z) n + z h. gx [n, 3*H], h [n, H].
    """
    (h,) = state
    x_r, x_z, x_n = gx.chunk(3, -1)
    h_r, h_z, h_n = _recurrent(inner, seen).chunk(3, -1)
    h_n = h_n if tap_gh is None else h_n + tap_gh
    z = inner.sigmoid(x_z + h_z)
    n = inner.tanh(x_n + inner.sigmoid(x_r + h_r) * h_n)
    return ((1 - z) * n + z * h,)


def _gru_before_step(
    inner: _Inner, state: State, seen: Tensor, gx: Tensor, tap_gh: Tensor | None, tap_r: Tensor | None
) -> State:
    """The same as Cho et al. 2014 have it: n = tanh(x_n + W_hn (r h) + b_hn)."""
    (h,) = state
    w_hh, b_hh, H = inner.weights.w_hh, inner.weights.b_hh, h.shape[-1]
    (w_rz, w_n), (b_rz, b_n) = (w_hh.split([2 * H, H]), (None, None) if b_hh is None else b_hh.split([2 * H, H]))
    x_rz, x_n = gx.split([2 * H, H], -1)
    r, z = inner.sigmoid(x_rz + F.linear(seen, w_rz, b_rz)).chunk(2, -1)
    n = inner.tanh(x_n + F.linear(r * seen, w_n, b_n))
    return ((1 - z) * n + z * h,)


def _rnn_step(
    inner: _Inner, state: State, seen: Tensor, gx: Tensor, tap_gh: Tensor | None, tap_r: Tensor | None
) -> State:
    """Simple recurrent network (Elman 1990): h' = tanh(x W_ih^T + h W_hh^T + b), or relu. gx [n, H], h [n, H]."""
    return (inner.tanh(gx + _recurrent(inner, seen)),)


def _identity(x: Tensor) -> Tensor:
    return x


def _hard_sigmoid(x: Tensor) -> Tensor:
    """min(max(x / 6 + 1 / 2, 0), 1). That of torch takes its slope for 1 / 6 in f32, whatever the dtype."""
    return F.hardtanh(x / 6 + 0.5, 0.0, 1.0)


_ACTIVATIONS: dict[int, Function] = {
    Activation.SIGMOID: torch.sigmoid,
    Activation.HARD_SIGMOID: _hard_sigmoid,
    Activation.TANH: torch.tanh,
    Activation.HARD_TANH: F.hardtanh,  # min(max(x, -1), 1)
    Activation.RELU: torch.relu,
    Activation.SOFTSIGN: F.softsign,  # x / (1 + |x|)
    Activation.IDENTITY: _identity,
}

_STEPS: dict[Cell, tuple[Callable[..., State], Function, Function]] = {
    Cell.LSTM: (_lstm_step, torch.sigmoid, torch.tanh),
    Cell.GRU: (_gru_step, torch.sigmoid, torch.tanh),
    Cell.RNN_TANH: (_rnn_step, torch.sigmoid, torch.tanh),
    Cell.RNN_RELU: (_rnn_step, torch.sigmoid, torch.relu),
    Cell.LSTM_LINEAR: (_lstm_step, _identity, _identity),
    Cell.GRU_LINEAR: (_gru_step, _identity, _identity),
    Cell.RNN_LINEAR: (_rnn_step, _identity, _identity),
}


def activations(cell: int, variant: Variant | None) -> tuple[Function, Function]:
    """Of gates and of states."""
    _, gate, state = _STEPS[Cell(cell)]
    if variant is None:
        return gate, state
    return _ACTIVATIONS.get(variant.gate, gate), _ACTIVATIONS.get(variant.state, state)


def _walk(
    inputs: Sequence[tuple],
    sizes: Sequence[int],
    initial: State,
    step: Callable[..., State],
    reverse: bool,
    reset: Sequence[Tensor] | None,
    begin: State,
    watch: Callable[[int, State], State] | None,
) -> tuple[list[State], State]:
    """Runs ``state = step(state, *inputs[t])`` over the steps, at step t on the first ``sizes[t]`` rows only.

    Forward in time the sizes fall: a row whose sequence has ended keeps its last state. In reverse they rise: a row
    joins with its initial state at its own last step. Where ``reset[t]`` [n] says that a row's episode begins at step
    t, its state becomes that of ``begin``, forward before the step, in reverse after it (after step 0 none follows).
    ``watch(t, state)`` gives the state that goes on from step t in place of the one that the step has left.
    Returns the states of every step, in order of t, and the final ones.
    """

    def renewed(state: State, t: int) -> State:
        if reset is None or t == len(sizes):
            return state
        mask = reset[t].unsqueeze(-1)
        return tuple(torch.where(mask, new[: sizes[t]], s) for s, new in zip(state, begin, strict=True))

    order = range(len(sizes))[:: -1 if reverse else 1]
    rows = sizes[order[0]]
    state = tuple(s[:rows] for s in initial)
    ended: list[State] = []
    outputs = []
    for t in order:
        if reverse:
            state = renewed(state, t + 1)
        if sizes[t] < rows:
            ended.append(tuple(s[sizes[t] :] for s in state))
            state = tuple(s[: sizes[t]] for s in state)
        elif sizes[t] > rows:
            state = tuple(torch.cat([s, first[rows : sizes[t]]]) for s, first in zip(state, initial, strict=True))
        if not reverse:
            state = renewed(state, t)
        rows = sizes[t]
        state = step(state, *inputs[t])
        outputs.append(state)
        if watch is not None:
            state = watch(t, state)
    if ended:  # the last to end are the first rows
        state = tuple(torch.cat(parts) for parts in zip(state, *reversed(ended), strict=True))
    return outputs[:: -1 if reverse else 1], state


def _numbers(batch_sizes: Tensor) -> list[int]:
    """The lengths as Python numbers, also where ``torch.func`` has wrapped them: tolist() refuses wrapped tensors."""
    while torch._C._functorch.is_gradtrackingtensor(batch_sizes):
        batch_sizes = torch._C._functorch.get_unwrapped(batch_sizes)
    return batch_sizes.tolist()


def layer(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    cell: int,
    taps: Taps | None = None,
    reset: Tensor | None = None,
    reset_initial: bool = False,
    variant: Variant | None = None,
    seed: Tensor | None = None,
    cells: bool = False,
    watch: Watch | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """One layer, all its directions, over the whole sequence.

    x [T, B, I], or [N, I] where ``batch_sizes`` [T] gives the rows of each step (``PackedSequence.data``);
    h0 [D, B, R]; c0 [D, B, H] for an LSTM, else None; weights: see :class:`Weights`, direction after direction;
    reset: bool, [T, B] or [N], True where an episode of a row begins, with the initial state or (default) with zeros;
    variant: of the cell, None for torch's; its own weights come after the others of a direction;
    seed: int64 [D, B], of what is drawn; without one nothing is, and units keep of their state what they do on average.
    Returns y [T, B, D*R] or [N, D*R]; hn [D, B, R]; cn [D, B, H] or None; with ``cells`` (LSTM only) c of every step,
    [T, B, D*H] or [N, D*H], else None. Where a state is cleared, both tell what it was before.
    ``watch``: see :class:`Watch`.
    """
    step_of_cell = _gru_before_step if variant is not None and variant.reset_before else _STEPS[Cell(cell)][0]
    sigmoid, tanh = activations(cell, variant)
    options = variant or Variant()
    directions = h0.shape[0]
    sizes = [x.shape[1]] * x.shape[0] if batch_sizes is None else _numbers(batch_sizes)

    def by_step(rows: Tensor) -> Sequence[Tensor]:
        """[T, B, ..] or [N, ..] -> for each step its rows [n, ..]."""
        return rows.unbind() if batch_sizes is None else rows.split(sizes)

    def tap(whole: Tensor | None, d: int) -> Sequence:
        """The part of direction d, [N, D*K] -> for each step [n, K]."""
        return [None] * len(sizes) if whole is None else whole.chunk(directions, -1)[d].split(sizes)

    begins = None if reset is None else by_step(reset)
    outputs, finals = [], []
    for d, each in enumerate(split_weights(weights, directions, cell, variant)):
        gx = by_step(_product(x, each.w_ih, each.b_ih, each.ln_ih))
        if taps is not None:
            gx = [g + extra for g, extra in zip(gx, tap(taps.gx, d), strict=True)]
        inputs = list(zip(range(len(sizes)), gx, tap(taps and taps.gh, d), tap(taps and taps.r, d), strict=True))
        initial: State = (h0[d],) if c0 is None else (h0[d], c0[d])
        seeds = None if seed is None else seed[d]
        mask = recurrent_mask(seeds, options.recurrent_dropout, h0[d])
        own = partial(step_of_cell, _Inner(each, sigmoid, tanh))
        step = with_zoneout(own, (options.zoneout_h, options.zoneout_c), seeds, initial, len(sizes))
        before, after = (partial(watch.before_step, d), partial(watch.after_step, d)) if watch else (None, None)
        step = with_dropout(step, mask, before)
        if options.clips:
            step = with_clip(step, options.clip_value, options.clip_norm)
        begin = initial if reset_initial else tuple(torch.zeros_like(s) for s in initial)
        walked, final = _walk(inputs, sizes, initial, step, d == 1, begins, begin, after)
        outputs.append(walked)
        finals.append(final)
    join = torch.stack if batch_sizes is None else torch.cat

    def of_every_step(which: int) -> Tensor:
        return torch.cat([join([state[which] for state in walked]) for walked in outputs], -1)

    hn, *cn = (torch.stack(parts) for parts in zip(*finals, strict=True))
    return of_every_step(0), hn, None if c0 is None else cn[0], of_every_step(1) if cells else None
