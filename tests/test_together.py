"""Every option of a module together with every other, drawn at random: values and all gradients beside the reference,
second derivatives by differences, and for what does not go together its error, before any kernel runs."""

from __future__ import annotations

import copy
import re
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from episodes import random_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import KINDS, agree, flat, leaves
from rows import WAYS, going
from test_differential import FAST, HALVES, SIZES, layouts
from torch import nn
from torch.autograd import gradgradcheck
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_map

import fused_rnn
from fused_rnn import network, ops

NAMES = ["sigmoid", "hard_sigmoid", "hard_tanh", "softsign", "tanh", "relu", "identity"]
SMOOTH = ["sigmoid", "tanh", "softsign", "identity"]
LOOP_RATES = ["recurrent_dropout", "zoneout_h"]
CALL_RATES = ["input_dropout", "weight_dropout"]
# Of one kind of cell alone: whose, a value, and what the others say to it.
OWN = {
    "proj_size": ("LSTM", 1, ValueError, "proj_size argument is only supported for LSTM"),
    "zoneout_c": ("LSTM", 0.3, ValueError, "zoneout_c argument is only supported for LSTM"),
    "peephole": ("LSTM", True, TypeError, "unexpected keyword argument 'peephole'"),
    "coupled_gates": ("LSTM", True, TypeError, "unexpected keyword argument 'coupled_gates'"),
    "reset_after": ("GRU", False, TypeError, "unexpected keyword argument 'reset_after'"),
    "nonlinearity": ("RNN", "relu", TypeError, "unexpected keyword argument 'nonlinearity'"),
}


@dataclass
class Trial:
    """A network and a call of it. ``chunk``: by truncated BPTT in chunks of so many steps; 0 for one call."""

    kind: str
    sizes: tuple[int, int]
    options: dict[str, Any]
    input: Any
    hx: Any
    call: dict[str, Any]
    chunk: int
    way: str
    training: bool
    trained: list[bool]
    seed: int

    def module(self) -> nn.Module:
        torch.manual_seed(self.seed)
        module = getattr(fused_rnn, self.kind)(*self.sizes, **self.options).train(self.training)
        for parameter, trained in zip(module.parameters(), self.trained * 99, strict=False):
            parameter.requires_grad_(trained)
        return module

    def errors(self) -> list[tuple[type[Exception], str]]:
        """What is documented of this combination; whichever is seen first is raised."""
        options, packed = self.options, isinstance(self.input, PackedSequence)
        found = [(error, text) for name, (kind, _, error, text) in OWN.items() if name in options and self.kind != kind]
        if options["layer_norm"] and not options.get("reset_after", True):
            found.append((ValueError, "layer_norm argument is only supported with reset_after=True"))
        if self.call.get("cells") and self.kind != "LSTM":
            found.append((ValueError, "cells argument is only supported for LSTM"))
        if self.chunk and options["bidirectional"]:
            found.append((ValueError, "truncated_bptt takes modules of one direction"))
        if self.chunk and "reset_to" in self.call:
            found.append((ValueError, "truncated_bptt resets to zero"))
        if packed and "lengths" in self.call:
            found.append((ValueError, "lengths must be None where input is a PackedSequence"))
        return found


class Called(nn.Module):
    """A module called as a trial says, by the kernels or by the reference."""

    def __init__(self, trial: Trial, module: nn.Module, kernels: bool) -> None:
        super().__init__()
        self.trial, self.module, self.kernels = trial, module, kernels

    def forward(self, input: Any, hx: Any = None) -> Any:
        trial = self.trial
        by = nullcontext() if self.kernels else mock.patch.object(network, "has_kernels", return_value=False)
        with going(trial.way), by:
            if not trial.chunk:
                return self.module(input, hx, **trial.call)
            return [part[:2] for part in fused_rnn.truncated_bptt(self.module, input, trial.chunk, hx, **trial.call)]


@st.composite
def trials(draw, smooth=False):
    """``smooth``: small, of f64, and such that the gradient has a derivative."""
    kind, flag, seldom = draw(st.sampled_from(KINDS)), st.booleans(), st.integers(0, 15).map(lambda n: n == 0)
    dtype = torch.float64 if smooth else draw(st.sampled_from([torch.float64] * 8 + [torch.float32, *HALVES]))
    size, exact = (st.integers(2, 3) if smooth else SIZES), dtype == torch.float64
    features, hidden, layers = draw(size), draw(size), draw(st.integers(1, 2 if smooth else 3))
    names = st.sampled_from(NAMES if exact and not smooth else SMOOTH)
    options = {"num_layers": layers, "dtype": dtype, "connection": None}
    options |= {n: draw(flag) for n in ("bias", "batch_first", "bidirectional", "recompute", "variational_dropout")}
    options["dropout"] = draw(st.sampled_from([0.0, 0.5])) if layers > 1 else 0.0
    if layers > 1:
        options["connection"] = draw(st.sampled_from([None, "residual", "dense", "highway"]))
    options |= {name: draw(st.sampled_from([0.0, 0.0, 0.3])) for name in LOOP_RATES + CALL_RATES}
    # Normalised, a row of two has no slope but its rounding.
    options["layer_norm"] = hidden > 2 and draw(st.integers(0, 2)) == 0
    # A second derivative by way of a layer above goes back through a clip.
    clips = not (smooth and layers > 1)
    options |= {f"clip_grad_{n}": draw(st.sampled_from([None, 0.3])) if clips else None for n in ("value", "norm")}
    if kind == "RNN":
        options["nonlinearity"] = draw(names)
    else:
        # Gates without a bound make a state grow as a power of a power: for one layer and few steps.
        gates = (NAMES if layers == 1 else NAMES[:5]) if exact and not smooth else SMOOTH[:3]
        options |= {"gate_activation": draw(st.sampled_from(gates)), "activation": draw(names)}
    if kind == "GRU":
        options["reset_after"] = draw(flag) or (smooth and options["layer_norm"])
    if kind == "LSTM":
        options |= {"peephole": draw(flag), "coupled_gates": draw(flag), "zoneout_c": draw(st.sampled_from([0.0, 0.3]))}
        options["proj_size"] = draw(st.sampled_from([0, hidden // 2]))
    if not smooth and draw(seldom):
        option = draw(st.sampled_from(sorted(OWN)))
        options.setdefault(option, OWN[option][1])

    few = smooth or options.get("gate_activation") in NAMES[5:]
    steps, form = draw(st.integers(1, 3 if few else 7)), draw(st.sampled_from(["padded", "one", "packed"]))
    batch = draw(st.integers(form == "packed", 2 if smooth else 5))
    if form == "one":
        shape = [steps, features]
    else:
        turned = options["batch_first"] and form == "padded"
        shape = [batch, steps, features] if turned else [steps, batch, features]
    input = layouts(draw, *shape, dtype=dtype, requires_grad=draw(flag))
    call, numbers = {}, st.lists(st.integers(1, steps), min_size=batch, max_size=batch)
    if form == "packed":
        ordered, lengths = draw(flag), draw(numbers)
        lengths = sorted(lengths, reverse=True) if ordered else lengths
        data = pack_padded_sequence(input.detach(), lengths, enforce_sorted=ordered)
        input = data._replace(data=data.data.requires_grad_(input.requires_grad))
    if draw(seldom) if form == "packed" else draw(flag) and (batch or form == "one"):
        ends = draw(st.lists(st.integers(-1, steps + 1), min_size=max(batch, 1), max_size=max(batch, 1)))
        call["lengths"] = torch.tensor(
            ends[0] if form == "one" else ends, dtype=draw(st.sampled_from([torch.int64, torch.int32]))
        )
    if draw(flag):
        torch.manual_seed(draw(st.integers(0, 99)))
        call["reset"] = random_mask(input, draw(st.sampled_from([0.2, 0.5, 1.0])))
        call |= draw(st.sampled_from([{}, {"reset_to": "zero"}, {"reset_to": "initial"}]))
    if draw(flag) if kind == "LSTM" else not smooth and draw(seldom):
        call["cells"] = True
    slots = [layers * (1 + options["bidirectional"]), *([] if form == "one" else [batch])]
    sizes = [(kind == "LSTM" and options["proj_size"]) or hidden, *([hidden] if kind == "LSTM" else [])]
    hx = tuple(layouts(draw, *slots, size, dtype=dtype, requires_grad=draw(flag)) for size in sizes)
    hx = None if draw(flag) else hx if kind == "LSTM" else hx[0]
    chunk = 0 if smooth or draw(st.integers(0, 3)) else draw(st.integers(1, 4))
    trained = [True] if draw(flag) else draw(st.lists(flag, min_size=1, max_size=7))
    last = draw(st.sampled_from(WAYS)), draw(st.integers(0, 3)) > 0, trained, draw(st.integers(0, 99))
    return Trial(kind, (features, hidden), options, input, hx, call, chunk, *last)


def check(trial: Trial) -> None:
    errors = trial.errors()
    if errors:
        kinds, texts = zip(*errors, strict=True)
        ran = dict.fromkeys(("_layer_forward", "_stack_forward"), mock.Mock(side_effect=AssertionError("a kernel ran")))
        with mock.patch.multiple(ops, **ran), pytest.raises(kinds, match="|".join(map(re.escape, texts))):
            Called(trial, trial.module(), True)(trial.input, trial.hx)
    else:
        module = trial.module()
        theirs, ours = Called(trial, copy.deepcopy(module), False), Called(trial, module, True)
        # Of a row that is nearly constant normalisation makes much of one rounding: up to 1 / sqrt(1e-5) times it.
        roundings = 4 if trial.options["layer_norm"] else 0
        agree(theirs, ours, trial.input, trial.hx, trial.seed, roundings)


@settings(max_examples=300, **FAST)
@given(trials())
def test_networks_agree(trial):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(trial)


def everything(kind: str) -> Trial:
    """All options that go together, in training, of rows that are walked to the last step, as graphs do."""
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True, "dtype": torch.float64, "recompute": True}
    options |= {"dropout": 0.5, "variational_dropout": True, "connection": "highway", "layer_norm": True}
    options |= dict.fromkeys([*LOOP_RATES, *CALL_RATES], 0.3) | {"clip_grad_value": 0.05, "clip_grad_norm": 0.1}
    if kind == "RNN":
        options["nonlinearity"] = "softsign"
    else:
        options |= {"gate_activation": "hard_sigmoid", "activation": "softsign"}
    if kind == "LSTM":
        options |= {"peephole": True, "coupled_gates": True, "zoneout_c": 0.3, "proj_size": 4}
    input = torch.randn(3, 6, 5, dtype=torch.float64, requires_grad=True)
    sizes = [4, 7] if kind == "LSTM" else [7]
    hx = tuple(torch.randn(4, 3, size, dtype=torch.float64, requires_grad=True) for size in sizes)
    call = {"reset": random_mask(input, 0.3), "reset_to": "initial", "lengths": torch.tensor([6, 0, 4])}
    call |= {"cells": True} if kind == "LSTM" else {}
    return Trial(kind, (5, 7), options, input, hx if kind == "LSTM" else hx[0], call, 0, "padded", True, [True], 3)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled(kind):
    trial = everything(kind)
    module = trial.module()

    class Compiled(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module
            self.compiled = torch.compile(module, fullgraph=True, backend="aot_eager")

        def forward(self, input, hx):
            return self.compiled(input, hx, **trial.call)

    torch._dynamo.reset()
    agree(Called(trial, copy.deepcopy(module), False), Compiled(), trial.input, trial.hx, trial.seed)
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
def test_mapped(kind):
    """Outputs, and gradients by each example's input and by the weights: those of a call for each, from one seed."""
    trial = everything(kind)
    module = trial.module()
    theirs, ours = Called(trial, copy.deepcopy(module), False), Called(trial, module, True)
    examples = torch.randn(3, *trial.input.shape, dtype=torch.float64)

    def calls(called):
        """outputs of an example, and gradients, as functions of the weights and of its input."""

        def outputs(weights, x):
            return tuple(flat(functional_call(called, weights, (x, trial.hx))))

        return outputs, grad(lambda *args: sum(output.sin().sum() for output in outputs(*args)), (0, 1))

    for mapped, each in zip(calls(ours), calls(theirs), strict=True):
        torch.manual_seed(trial.seed)
        got = vmap(mapped, (None, 0), randomness="same")(dict(ours.named_parameters()), examples)
        wanted = []
        for x in examples:
            torch.manual_seed(trial.seed)
            wanted.append(each(dict(theirs.named_parameters()), x))
        wanted = tree_map(lambda *parts: torch.stack(parts), *wanted)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@settings(max_examples=12, **FAST)
@given(trials(smooth=True))
def test_second_derivatives(trial):
    if trial.errors():
        return check(trial)
    called = Called(trial, trial.module(), True)
    wanted = leaves(trial.input, trial.hx, list(called.parameters()))

    def function(*args):
        given = dict(zip(map(id, wanted), args, strict=True))

        def put(value):
            return tree_map(lambda part: given.get(id(part), part), value)

        torch.manual_seed(trial.seed)
        input = trial.input
        input = input._replace(data=put(input.data)) if isinstance(input, PackedSequence) else put(input)
        return tuple(flat(functional_call(called, put(dict(called.named_parameters())), (input, put(trial.hx)))))

    if wanted:
        assert gradgradcheck(function, wanted, fast_mode=True)
    return None
