"""Bad arguments are refused as torch refuses them, or better where its text says nothing, before any kernel runs."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from devices import native_loops, on_cpu, pack_sequence
from pairs import CELLS, KINDS, pair
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn import network, step


@pytest.fixture(autouse=True)
def no_kernel_runs(monkeypatch):
    def layer(*args):
        raise AssertionError("a layer ran on bad arguments")

    monkeypatch.setattr(network, "layer", layer)
    monkeypatch.setattr(step, "layer", layer)


def raised(call, *args, **kwargs):
    with pytest.raises(Exception) as error:
        call(*args, **kwargs)
    assert error.type is not AssertionError, error.value
    return error.type, str(error.value)


CONSTRUCTORS = [
    ("LSTM", (3, 4), {"dropout": 1.5}),
    ("LSTM", (3, 4), {"dropout": True}),
    ("LSTM", (3, 4), {"bias": 1}),
    ("GRU", (3, 4), {"batch_first": 1}),
    ("GRU", (3.0, 4), {}),
    ("RNN", (3, 4.0), {}),
    ("RNN", (0, 4), {}),
    ("RNN", (3, 0), {}),
    ("LSTM", (3, 4, 0), {}),
    ("LSTM", (3, 4), {"proj_size": -1}),
    ("LSTM", (3, 4), {"proj_size": 4}),
    ("GRU", (3, 4), {"proj_size": 2}),
    ("RNN", (3, 4), {"proj_size": 2}),
    ("LSTM", (3,), {}),
    ("GRU", (3,), {}),
    ("GRU", (3, 4), {"foo": 1}),
    ("LSTMCell", (3,), {}),
]


@pytest.mark.parametrize(("kind", "args", "kwargs"), CONSTRUCTORS, ids=str)
def test_constructors(kind, args, kwargs):
    (theirs, text), (ours, got) = (raised(getattr(library, kind), *args, **kwargs) for library in (nn, fused_rnn))
    assert (ours, got.replace("fused_rnn", "torch")) == (theirs, text)


def test_unknown_nonlinearity():
    """In torch's words, up to the names: there are more of them."""
    for args in ((3, 4, 1, True), (3, 4, 1, "sig")):
        (theirs, text), (ours, got) = (raised(library.RNN, *args) for library in (nn, fused_rnn))
        assert ours is theirs
        assert got.startswith(text.removesuffix("'tanh' or 'relu'."))
        assert "'tanh', " in got


def test_dropout_with_one_layer_warns():
    texts = []
    for library in (nn, fused_rnn):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            library.GRU(3, 4, dropout=0.5)
        texts += [(w.category, str(w.message)) for w in caught]
    assert len(texts) == 2
    assert texts[0] == texts[1]


Z = torch.zeros
NO = partial(torch.zeros, dtype=torch.bool)
PACKED = pack_padded_sequence
FORWARD = {
    "rank 4": ("every", lambda: (Z(1, 1, 1, 3),)),
    "rank 1": ("every", lambda: (Z(3),)),
    "dtype": ("every", lambda: (Z(5, 3, 3, dtype=torch.float64),)),
    "features": ("every", lambda: (Z(5, 3, 7),)),
    "features, unbatched": ("every", lambda: (Z(5, 7),)),
    "no steps": ("every", lambda: (Z(0, 3, 3),)),
    "state of rank 2": ("one", lambda: (Z(5, 3, 3), Z(2, 4))),
    "state of rank 3, unbatched": ("one", lambda: (Z(5, 3), Z(2, 1, 4))),
    "state of another batch": ("one", lambda: (Z(5, 3, 3), Z(2, 2, 4))),
    "state of other units": ("one", lambda: (Z(5, 3, 3), Z(2, 3, 5))),
    "state of other layers": ("one", lambda: (Z(5, 3, 3), Z(1, 3, 4))),
    "state is a tuple": ("one", lambda: (Z(5, 3, 3), (Z(2, 3, 4), Z(2, 3, 4)))),
    "state elsewhere": ("one", lambda: (Z(5, 3, 3), Z(2, 3, 4, device="meta"))),
    "states of rank 2": ("two", lambda: (Z(5, 3, 3), (Z(2, 4), Z(2, 4)))),
    "states of rank 3, unbatched": ("two", lambda: (Z(5, 3), (Z(2, 1, 4), Z(2, 1, 4)))),
    "h of another batch": ("two", lambda: (Z(5, 3, 3), (Z(2, 2, 4), Z(2, 3, 4)))),
    "c of another batch": ("two", lambda: (Z(5, 3, 3), (Z(2, 3, 4), Z(2, 2, 4)))),
    "three states": ("two", lambda: (Z(5, 3, 3), (Z(2, 3, 4), Z(2, 3, 4), Z(2, 3, 4)))),
    "one state": ("two", lambda: (Z(5, 3, 3), (Z(2, 3, 4),))),
    "a tensor as states": ("two", lambda: (Z(5, 3, 3), Z(2, 3, 4))),
    "c elsewhere": ("two", lambda: (Z(5, 3, 3), (Z(2, 3, 4), Z(2, 3, 4, device="meta")))),
    "input elsewhere": ("every", lambda: (Z(5, 3, 3, device="meta"),)),
}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("case", FORWARD)
@pytest.mark.parametrize("kind", KINDS)
def test_forward(kind, case, batch_first):
    states, arguments = FORWARD[case]
    if states != "every" and (states == "two") != (kind == "LSTM"):
        kind = {"one": "GRU", "two": "LSTM"}[states]
    theirs, ours = pair(kind, 3, 4, 2, batch_first=batch_first)
    args = arguments()
    if batch_first and args[0].dim() == 3:
        args = (args[0].transpose(0, 1), *args[1:])
    with native_loops():  # cuDNN has no such checks
        assert raised(ours, *args) == raised(theirs, *args)


@pytest.mark.parametrize("kind", KINDS)
def test_state_dtype(kind):
    """torch on the CPU, for an LSTM: "get_mkldnn_dtype: unsupported data type"; for the others a text about mat1 and
    mat2."""
    theirs, ours = pair(kind, 3, 4)
    x, h = Z(5, 2, 3), Z(1, 2, 4, dtype=torch.float64)
    error, text = raised(ours, x, (h, h) if kind == "LSTM" else h)
    assert error is RuntimeError
    assert "torch.float32" in text
    assert "torch.float64" in text
    if kind != "LSTM" and on_cpu():
        assert text.startswith(raised(theirs, x, h)[1])
    assert raised(ours, x, (Z(1, 2, 4), h) if kind == "LSTM" else h)[0] is RuntimeError


@pytest.mark.parametrize("given", [(None, Z(2, 2, 4)), (Z(2, 2, 4), None), (None, None), (Z(2, 2, 4),)])
def test_packed_states_that_are_not_there(given):
    theirs, ours = pair("LSTM", 3, 4, 2)
    x = PACKED(Z(5, 2, 3), [5, 2])
    with native_loops():
        assert raised(ours, x, given) == raised(theirs, x, given)


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_packed(kind, enforce_sorted):
    """torch lets a packed LSTM pass unchecked; every size is checked here, in the words used for padded input."""
    _, ours = pair(kind, 3, 4)
    which = "hidden[0]" if kind == "LSTM" else "hidden"

    def states(*shape, **options):
        state = Z(*shape, **options)
        return (state, state) if kind == "LSTM" else state

    def packed(features=3, dtype=torch.float32):
        return pack_padded_sequence(Z(5, 3, features, dtype=dtype), [5, 4, 2], enforce_sorted=enforce_sorted)

    def refused(*args):
        error, text = raised(ours, *args)
        return error.__name__, text

    size = "input.size(-1) must be equal to input_size. Expected 3, got 7"
    assert refused(packed(7)) == ("RuntimeError", size)
    dtype_error, dtype_text = refused(packed(dtype=torch.float64))
    assert dtype_error == "ValueError"
    assert dtype_text.startswith("RNN input dtype (torch.float64) does not match weight dtype (torch.float32).")
    one_dim = pack_sequence([Z(3), Z(2)])
    assert refused(one_dim) == ("RuntimeError", "input must have 2 dimensions, got 1")
    for shape in ((1, 4), (1, 2, 4), (1, 4, 4), (2, 3, 4), (1, 3, 5)):
        expected = f"Expected {which} size (1, 3, 4), got {list(shape)}"
        assert refused(packed(), states(*shape)) == ("RuntimeError", expected)
    error, text = refused(packed(), states(1, 3, 4, dtype=torch.float64))
    assert error == "RuntimeError"
    assert "torch.float64" in text
    if kind == "LSTM":
        assert refused(packed(), (Z(1, 3, 4), Z(1, 3, 5)))[1] == "Expected hidden[1] size (1, 3, 4), got [1, 3, 5]"
        assert refused(packed(), (Z(1, 3, 4),) * 3)[1] == "lstm expects two hidden states"


RESETS = {
    "ints": (
        lambda: (Z(5, 3, 3), Z(5, 3, dtype=torch.int64)),
        TypeError,
        "reset must be a bool tensor, got torch.int64",
    ),
    "a list": (lambda: (Z(5, 3, 3), [True] * 5), TypeError, "reset must be a bool tensor, got list"),
    "batch first": (lambda: (Z(5, 3, 3), NO(3, 5)), RuntimeError, "Expected reset size (5, 3), got [3, 5]"),
    "with features": (lambda: (Z(5, 3, 3), NO(5, 3, 1)), RuntimeError, "Expected reset size (5, 3), got [5, 3, 1]"),
    "of a batch": (lambda: (Z(5, 3), NO(5, 1)), RuntimeError, "Expected reset size (5,), got [5, 1]"),
    "elsewhere": (
        lambda: (Z(5, 3, 3), NO(5, 3, device="meta")),
        RuntimeError,
        f"reset must be on the device of input ({Z(0).device}), got meta",
    ),
    "not packed": (
        lambda: (PACKED(Z(5, 3, 3), [5, 4, 2]), NO(5, 3)),
        TypeError,
        "reset must be a PackedSequence, as input is one, got Tensor",
    ),
    "packed": (
        lambda: (Z(5, 3, 3), PACKED(NO(5, 3), [5, 4, 2])),
        TypeError,
        "reset must be a bool tensor, got PackedSequence",
    ),
    "packed ints": (
        lambda: (PACKED(Z(5, 3, 3), [5, 4, 2]), PACKED(Z(5, 3), [5, 4, 2])),
        TypeError,
        "reset must be a bool tensor, got torch.float32",
    ),
    "fewer rows": (
        lambda: (PACKED(Z(5, 3, 3), [5, 4, 2]), PACKED(NO(5, 3), [5, 4, 1])),
        RuntimeError,
        "Expected reset size (11,), got [10]",
    ),
    "other lengths": (
        lambda: (PACKED(Z(5, 3, 3), [5, 4, 2]), PACKED(NO(5, 3), [5, 3, 3])),
        RuntimeError,
        "reset must be packed as input is: its batch_sizes or its sorted_indices are others",
    ),
    "another order": (
        lambda: (
            PACKED(Z(5, 3, 3), [2, 4, 5], enforce_sorted=False),
            PACKED(NO(5, 3), [4, 2, 5], enforce_sorted=False),
        ),
        RuntimeError,
        "reset must be packed as input is: its batch_sizes or its sorted_indices are others",
    ),
    "no order": (
        lambda: (PACKED(Z(5, 3, 3), [5, 4, 2], enforce_sorted=False), PACKED(NO(5, 3), [5, 4, 2])),
        RuntimeError,
        "reset must be packed as input is: its batch_sizes or its sorted_indices are others",
    ),
}


@pytest.mark.parametrize("case", RESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_resets(kind, case):
    arguments, *expected = RESETS[case]
    input, reset = arguments()
    _, ours = pair(kind, 3, 4, 2)
    assert raised(ours, input, reset=reset) == tuple(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_state_to_reset_to(kind):
    _, ours = pair(kind, 3, 4)
    expected = (ValueError, "reset_to must be 'zero' or 'initial', got 'h0'")
    for reset in (NO(5, 3), None):
        assert raised(ours, Z(5, 3, 3), reset=reset, reset_to="h0") == expected
    function = getattr(fused_rnn.functional, {"RNN": "rnn_tanh"}.get(kind, kind.lower()))
    assert raised(function, Z(5, 3, 3), None, list(ours.parameters()), reset_to="h0") == expected


INTS = partial(torch.zeros, dtype=torch.int64)
LENGTHS = {
    "floats": (lambda: (Z(5, 3, 3), Z(3)), TypeError, "lengths must be an integer tensor, got torch.float32"),
    "bools": (lambda: (Z(5, 3, 3), NO(3)), TypeError, "lengths must be an integer tensor, got torch.bool"),
    "a list": (lambda: (Z(5, 3, 3), [5, 4, 2]), TypeError, "lengths must be an integer tensor, got list"),
    "of another batch": (lambda: (Z(5, 3, 3), INTS(5)), RuntimeError, "Expected lengths size (3,), got [5]"),
    "of rank 2": (lambda: (Z(5, 3, 3), INTS(3, 1)), RuntimeError, "Expected lengths size (3,), got [3, 1]"),
    "of a batch": (lambda: (Z(5, 3), INTS(1)), RuntimeError, "Expected lengths size (), got [1]"),
    "packed": (
        lambda: (PACKED(Z(5, 3, 3), [5, 4, 2]), INTS(3)),
        ValueError,
        "lengths must be None where input is a PackedSequence, which has lengths of its own",
    ),
}


@pytest.mark.parametrize("case", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_lengths(kind, case):
    arguments, *expected = LENGTHS[case]
    input, lengths = arguments()
    _, ours = pair(kind, 3, 4, 2)
    assert raised(ours, input, lengths=lengths) == tuple(expected)


@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_cells_are_an_lstm_s(kind):
    expected = (ValueError, "cells argument is only supported for LSTM, not RNN or GRU")
    assert raised(pair(kind, 3, 4)[1], Z(5, 3, 3), cells=True) == expected


CELL_CALLS = {
    "rank 3": lambda: (Z(1, 2, 3),),
    "features": lambda: (Z(2, 7),),
    "features, unbatched": lambda: (Z(7),),
    "dtype": lambda: (Z(2, 3, dtype=torch.float64),),
    "state of rank 3": lambda: (Z(2, 3), Z(1, 2, 4)),
    "state of another batch": lambda: (Z(2, 3), Z(3, 4)),
    "state of other units": lambda: (Z(2, 3), Z(2, 5)),
    "state of another dtype": lambda: (Z(2, 3), Z(2, 4, dtype=torch.float64)),
    "state of rank 1": lambda: (Z(2, 3), Z(4)),
    "state of rank 2, unbatched": lambda: (Z(3), Z(1, 4)),
}


@pytest.mark.parametrize("case", CELL_CALLS)
@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind, case):
    theirs, ours = pair(kind, 3, 4)
    input, *states = CELL_CALLS[case]()
    if states and kind == "LSTMCell":
        states = [(states[0], states[0])]
    assert raised(ours, input, *states) == raised(theirs, input, *states)


def test_unknown_nonlinearity_of_a_cell():
    theirs, ours = pair("RNNCell", 3, 4, nonlinearity="sig")
    assert raised(ours, Z(2, 3)) == raised(theirs, Z(2, 3)) == (RuntimeError, "Unknown nonlinearity: sig")


@pytest.mark.parametrize("states", [(), (Z(2, 4),), (Z(2, 4),) * 3, [Z(2, 4)], Z(2, 2, 4)], ids=str)
def test_an_lstm_cell_has_two_states(states):
    theirs, ours = torch.lstm_cell, fused_rnn.functional.lstm_cell
    weights = Z(16, 3), Z(16, 4)
    assert raised(ours, Z(2, 3), states, *weights) == raised(theirs, Z(2, 3), states, *weights)


@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize("function", ["lstm", "gru", "rnn_tanh"])
def test_functions_have_layers(function, number):
    call = getattr(fused_rnn.functional, function)
    expected = (ValueError, "num_layers must be greater than zero")
    assert raised(call, Z(5, 2, 3), None, [Z(16, 3), Z(16, 4)], num_layers=number) == expected


@pytest.mark.parametrize("wrong", [0, 1])
@pytest.mark.parametrize("function", ["lstm", "gru", "rnn_tanh"])
def test_functions_have_weights_of_two_dimensions(function, wrong):
    call = getattr(fused_rnn.functional, function)
    for rank, bad in ((0, Z([])), (1, Z(16)), (3, Z(1, 16, 4))):
        params = [Z(12, 3), Z(12, 4)]
        params[wrong] = bad
        expected = (RuntimeError, f"{('w_ih', 'w_hh')[wrong]} must have 2 dimensions, got {rank}")
        assert raised(call, Z(5, 2, 3), None, params) == expected
