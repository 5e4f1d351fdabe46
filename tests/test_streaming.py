"""``Stream``: the module's numbers however the sequence is cut, frozen weights, and its state."""

from __future__ import annotations

import copy
import math
import os
import threading
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

import fused_rnn
from fused_rnn import _C

pytestmark = pytest.mark.cpu_only("streams run on the CPU")

KINDS = ["LSTM", "GRU", "RNN"]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def module_of(kind, *args, dtype=torch.float32, **kwargs):
    return getattr(nn, kind)(*args, **kwargs).to(dtype)


def states_of(state):
    return state if isinstance(state, tuple) else (state,)


def assert_near(actual, expected):
    """``expected`` in float64."""
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        # A relu's values have no bound, and round as they are.
        largest = max([1.0, *e.abs().flatten().tolist()])
        torch.testing.assert_close(a.double(), e, rtol=0, atol=TOLERANCE[a.dtype] * largest)


@st.composite
def cases(draw):
    kind = draw(st.sampled_from(KINDS))
    options = {
        "num_layers": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 0.5])),
    }
    hidden = draw(st.integers(1, 70))
    if kind == "LSTM" and hidden > 1:
        options["proj_size"] = draw(st.integers(0, hidden - 1))
    if kind == "RNN":
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    if options["num_layers"] == 1:
        options["dropout"] = 0.0
    sizes = draw(st.integers(1, 40)), hidden
    steps = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    return kind, sizes, options, steps, draw(st.integers(1, 9)), dtype, draw(st.sampled_from(_C.cpu_isas()))


@settings(deadline=None, max_examples=150)
@given(cases())
def test_equals_the_module_however_cut(case):
    kind, sizes, options, steps, batch, dtype, isa = case
    module = module_of(kind, *sizes, dtype=dtype, **options)
    own = module.double()
    x = torch.randn(sum(steps), batch, sizes[0]).to(dtype)
    with torch.no_grad():
        given = x.double().transpose(0, 1) if options["batch_first"] else x.double()
        y, state = copy.deepcopy(own).eval()(given)
    y = y.transpose(0, 1) if options["batch_first"] else y
    module = module.to(dtype)
    _C.force_isa(isa)
    try:
        stream, whole = (fused_rnn.Stream(module, batch) for _ in range(2))
        parts = []
        for part in x.split(steps):
            if len(part) == 1:  # as one step
                parts.append(stream(part[0]).unsqueeze(0))
            elif options["batch_first"]:
                parts.append(stream(part.transpose(0, 1)).transpose(0, 1))
            else:
                parts.append(stream(part))
        assert_near([torch.cat(parts)], [y])
        assert_near(states_of(stream.state), states_of(state))
        # The cut changes no bit.
        at_once = whole(x.transpose(0, 1)).transpose(0, 1) if options["batch_first"] else whole(x)
        assert torch.equal(at_once, torch.cat(parts))
    finally:
        _C.force_isa("")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("steps", "batch", "hidden"), [(700, 3, 20), (3, 300, 40), (5, 2, 600), (40, 1, 300)])
def test_long_wide_and_large(kind, steps, batch, hidden):
    """Many pieces of time; more rows than a piece; weights that threads share."""
    module = getattr(fused_rnn, kind)(30, hidden, 2)
    x = torch.randn(steps, batch, 30)
    with torch.no_grad():
        y, state = copy.deepcopy(module).double()(x.double())
    stream = fused_rnn.Stream(module, batch)
    assert_near([stream(x)], [y])
    assert_near(states_of(stream.state), states_of(state))
    bits = stream.fork()(x)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        assert torch.equal(stream.fork()(x), bits)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_frozen_and_own(kind):
    module = getattr(fused_rnn, kind)(5, 7)
    x = torch.randn(4, 2, 5)
    with torch.no_grad():
        expected = module(x)[0]
        stream = fused_rnn.Stream(module, 2)
        for weight in module.parameters():
            weight.zero_()
        assert not torch.equal(module(x)[0], expected)  # a module is never stale
    del module
    torch.testing.assert_close(stream(x), expected, rtol=1e-5, atol=1e-6)


def test_weights_in_any_layout_and_parametrized():
    module = nn.GRU(6, 6)
    module.weight_hh_l0.data = module.weight_hh_l0.detach().t().contiguous().t()
    parametrizations.weight_norm(module, "weight_ih_l0")
    with torch.no_grad():
        module.parametrizations.weight_ih_l0.original0.mul_(2)
        x = torch.randn(3, 2, 6)
        torch.testing.assert_close(fused_rnn.Stream(module, 2)(x), module(x)[0], rtol=1e-5, atol=1e-6)


def test_input_in_any_layout():
    stream = fused_rnn.Stream(nn.GRU(6, 4), 3)
    x = torch.randn(3, 6, 5).permute(2, 0, 1)
    assert torch.equal(stream(x), stream.fork()(x.contiguous()))
    expanded = torch.randn(1, 1, 6).expand(4, 3, 6)
    stream.reset()
    assert torch.equal(stream(expanded), stream.fork()(expanded.contiguous()))


@pytest.mark.parametrize("kind", KINDS)
def test_state(kind):
    module = getattr(fused_rnn, kind)(5, 7, 2)
    stream = fused_rnn.Stream(module, 3)
    assert all(not part.any() for part in states_of(stream.state))
    x = torch.randn(6, 3, 5)
    first = stream(x[:3])
    state = stream.state
    rest = stream(x[3:])
    assert not any(torch.equal(a, b) for a, b in zip(states_of(state), states_of(stream.state), strict=True))
    stream.state = state
    assert torch.equal(stream(x[3:]), rest)
    stream.reset()
    assert torch.equal(stream(x[:3]), first)
    given = tuple(torch.randn(2, 3, 7).transpose(1, 2).contiguous().transpose(1, 2) for _ in states_of(state))
    stream.state = given if kind == "LSTM" else given[0]
    for a, b in zip(states_of(stream.state), given, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_known_to_be_zero_is_not_multiplied(kind, dtype, value):
    """But by weights that zero does not silence. One that was set, zero or not, is."""
    module = getattr(fused_rnn, kind)(5, 40, 2).to(dtype)
    with torch.no_grad():
        module.weight_hh_l1[-1, -1] = value
    x = torch.randn(3, 2, 5).to(dtype)
    stream, multiplied = (fused_rnn.Stream(module, 2) for _ in range(2))
    state = stream.state

    def same(a, b):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)

    for _ in range(2):  # when it is new, and after a reset
        multiplied.state = state
        first = stream(x[0])
        assert first.isnan().any() == (value != 0)
        same(first, multiplied(x[0]))
        same(stream(x), multiplied(x))
        same(stream.state, multiplied.state)
        stream.reset()
    stream.state = tuple(torch.ones_like(part) for part in state) if kind == "LSTM" else torch.ones_like(state)
    assert not torch.equal(stream(x[0]), first)
    stream.reset([0])
    assert not torch.equal(stream(x[0])[1], first[1])


@pytest.mark.parametrize(
    "rows",
    [
        [1, 3],
        [-3, 3],
        [False, True, False, True],
        torch.tensor([False, True, False, True]),
        torch.tensor([3, 1]),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_reset_of_some_rows(kind, rows):
    module = getattr(fused_rnn, kind)(5, 7, 2)
    stream, other = fused_rnn.Stream(module, 4), fused_rnn.Stream(module, 4)
    x = torch.randn(5, 4, 5)
    stream(x), other(x)
    stream.reset(rows)
    for mine, untouched in zip(states_of(stream.state), states_of(other.state), strict=True):
        assert not mine[:, [1, 3]].any()
        assert torch.equal(mine[:, [0, 2]], untouched[:, [0, 2]])
    y, fresh, old = stream(x), fused_rnn.Stream(module, 4)(x), other(x)
    assert torch.equal(y[:, [1, 3]], fresh[:, [1, 3]])
    assert torch.equal(y[:, [0, 2]], old[:, [0, 2]])


def test_forks_share_weights_and_nothing_else():
    stream = fused_rnn.Stream(nn.LSTM(5, 7), 2)
    x = torch.randn(4, 2, 5)
    first = stream(x)
    other, wide = stream.fork(), stream.fork(6)
    assert torch.equal(other(x), first)
    torch.testing.assert_close(wide(x.repeat(1, 3, 1)), first.repeat(1, 3, 1))
    del stream
    other.reset()
    assert torch.equal(other(x), first)


def test_many_threads():
    stream = fused_rnn.Stream(nn.LSTM(16, 32, 2), 2)
    x = torch.randn(50, 2, 16)
    expected = stream(x)
    wrong = []

    def work(own):
        for _ in range(20):
            own.reset()
            if not torch.equal(own(x), expected):
                wrong.append(own)

    # One stream for all of them as well: its calls wait for each other, and it must not crash.
    threads = [threading.Thread(target=work, args=(stream.fork(),)) for _ in range(4)]
    threads += [threading.Thread(target=lambda: [stream(x) for _ in range(20)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_in_a_forked_process():
    stream = fused_rnn.Stream(nn.LSTM(16, 300, 2), 16)
    x = torch.randn(20, 16, 16)
    expected = stream(x).tolist()
    stream.reset()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if stream(x).tolist() == expected else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_nan_stays_in_its_row():
    stream = fused_rnn.Stream(nn.GRU(5, 7), 3)
    x = torch.randn(4, 3, 5)
    x[1, 1] = float("nan")
    y = stream(x)
    assert y[1:, 1].isnan().all()
    assert not y[:, [0, 2]].isnan().any()


def test_under_every_grad_mode_and_compile():
    module = fused_rnn.LSTM(5, 7)
    stream = fused_rnn.Stream(module, 2)
    x = torch.randn(4, 2, 5)
    with torch.no_grad():
        expected = module(x)[0]
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            stream.reset()
            y = stream(x)
        assert not y.requires_grad
        torch.testing.assert_close(y, expected)

    @torch.compile
    def step(x):
        return stream(x * 2) + 1

    stream.reset()
    torch.testing.assert_close(step(x / 2), expected + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_the_default_device(kind):
    module, x = getattr(nn, kind)(5, 7, 2), torch.randn(4, 2, 5)
    expected = fused_rnn.Stream(module, 2)
    y = expected(x)
    with torch.device("meta"):
        stream = fused_rnn.Stream(module, 2)
        assert torch.equal(stream(x), y)
        for mine, others in zip(states_of(stream.state), states_of(expected.state), strict=True):
            assert torch.equal(mine, others)
        stream.reset([0])
    assert not states_of(stream.state)[0][:, 0].any()


def test_tensors_that_are_lazily_negative():
    module, x = nn.LSTM(1, 7), torch.randn(1, 1)
    state = torch.randn(1, 1, 7)
    stream, negative = fused_rnn.Stream(module), fused_rnn.Stream(module)
    stream.state, negative.state = (-state, state), (torch._neg_view(state), state)
    conjugate = torch.complex(x, x).conj().imag
    assert conjugate.is_neg()
    assert conjugate.is_contiguous()
    assert torch.equal(negative(conjugate), stream(-x))


@pytest.mark.parametrize("make", [nn.LSTM, fused_rnn.LSTM])
@pytest.mark.parametrize("what", ["pruned", "weight norm"])
def test_weights_that_a_hook_makes(make, what):
    """They are as old as the last forward, as after loading a checkpoint."""
    modules = [make(5, 7) for _ in range(2)]
    for module in modules:
        if what == "pruned":
            prune.l1_unstructured(module, "weight_hh_l0", 0.5)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                torch.nn.utils.weight_norm(module, "weight_hh_l0")
    modules[1].load_state_dict(modules[0].state_dict())
    x = torch.randn(4, 1, 5)
    y = fused_rnn.Stream(modules[1])(x)
    torch.testing.assert_close(y, modules[1](x)[0].detach())
