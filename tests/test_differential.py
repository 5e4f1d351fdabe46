"""All options together, drawn at random, against ``torch.nn``: outputs, states and every gradient."""

from __future__ import annotations

import warnings

import pytest
import torch
from devices import device
from episodes import BySteps, Masked, random_mask
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pairs import CELLS, KINDS, agree, pair
from rows import WAYS, ByRows, OfLengths
from torch.nn.utils.rnn import pack_padded_sequence

FAST = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
DTYPES = [torch.float64, torch.float64, torch.float32, torch.bfloat16, torch.float16]
# A relu unit that rounding carries over zero has another derivative: no rule of errors holds for its gradients, so in
# 8 or 11 bits relu has a test of its own.
HALVES = [torch.bfloat16, torch.float16]
SIZES = st.integers(1, 9) | st.sampled_from([16, 17, 31, 33])


def layouts(draw, *shape, dtype, requires_grad=False):
    """A random tensor: contiguous, every other element of one, transposed, or expanded along the batch."""
    kind = draw(st.sampled_from(["contiguous", "strided", "transposed", "expanded"]))
    if kind == "strided":
        tensor = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]
    elif kind == "transposed" and len(shape) > 1:
        tensor = torch.randn(shape[1], shape[0], *shape[2:]).transpose(0, 1)
    elif kind == "expanded" and len(shape) > 1:
        tensor = torch.randn(shape[0], 1, *shape[2:]).expand(*shape)
    else:
        tensor = torch.randn(*shape)
    return (
        tensor.to(dtype).detach().requires_grad_(requires_grad)
        if dtype != tensor.dtype
        else (tensor.detach().requires_grad_(requires_grad))
    )


@st.composite
def networks(draw, by_steps=False, packs=True):
    """(torch's module, ours, input, hx, seed of the dropout). ``by_steps``: without what single steps do not have."""
    kind = draw(st.sampled_from(KINDS))
    features, hidden, layers = draw(SIZES), draw(SIZES), draw(st.integers(1, 3))
    dtype = draw(st.sampled_from(DTYPES))
    options = {
        "num_layers": layers,
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "dropout": 0.0 if by_steps else draw(st.sampled_from([0.0, 0.0, 0.5, 1.0])),
        "bidirectional": draw(st.booleans()),
        "dtype": dtype,
    }
    if kind == "RNN" and dtype not in HALVES:
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    if kind == "LSTM" and hidden > 1 and not by_steps:
        options["proj_size"] = draw(st.sampled_from([0, 0, 1, hidden // 2]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, ours = pair(kind, features, hidden, seed=draw(st.integers(0, 99)), **options)
    ours.recompute = draw(st.booleans())
    training = draw(st.booleans())
    theirs.train(training)
    ours.train(training)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        mine.requires_grad_(draw(st.booleans()))
        other.requires_grad_(mine.requires_grad)

    steps, batch = draw(st.integers(1, 7)), draw(st.integers(0, 5))
    form = draw(st.sampled_from(["padded", "padded", "unbatched", *(["packed", "unsorted"] if packs else [])]))
    wants = draw(st.booleans())
    if form == "unbatched":
        shape: tuple[int, ...] = (steps, features)
    elif form == "padded":
        shape = (batch, steps, features) if options["batch_first"] else (steps, batch, features)
    else:
        batch = max(batch, 1)
        shape = (steps, batch, features)
    input = layouts(draw, *shape, dtype=dtype, requires_grad=wants)
    if form in ("packed", "unsorted"):
        lengths = draw(st.lists(st.integers(1, steps), min_size=batch, max_size=batch))
        lengths = lengths if form == "unsorted" else sorted(lengths, reverse=True)
        input = pack_padded_sequence(input, lengths, enforce_sorted=form == "packed")
        input = input._replace(data=input.data.detach().requires_grad_(wants))

    hx = None
    if draw(st.booleans()):
        slots = layers * (2 if options["bidirectional"] else 1)
        rows = () if form == "unbatched" else (batch,)
        sizes = [options.get("proj_size") or hidden, *([hidden] if kind == "LSTM" else [])]
        states = [layouts(draw, slots, *rows, size, dtype=dtype, requires_grad=draw(st.booleans())) for size in sizes]
        hx = states[0] if kind != "LSTM" else draw(st.sampled_from([tuple, list]))(states)
        if kind == "LSTM" and sizes[0] == sizes[1] and draw(st.booleans()):
            hx = (states[0], states[0])
    return theirs, ours, input, hx, draw(st.integers(0, 99))


@settings(max_examples=700, **FAST)
@given(networks())
def test_networks_agree(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: "LSTM with projections is not supported with oneDNN"
        agree(*case)


@st.composite
def networks_with_resets(draw):
    theirs, ours, input, *others = draw(networks(by_steps=True))
    torch.manual_seed(draw(st.integers(0, 99)))
    mask, to = (
        random_mask(input, draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))),
        draw(st.sampled_from(["zero", "initial"])),
    )
    return BySteps(theirs, mask, to), Masked(ours, mask, to), input, *others


@settings(max_examples=300, **FAST)
@given(networks_with_resets())
def test_networks_with_resets_agree(case):
    agree(*case)


@st.composite
def networks_with_lengths(draw):
    """Resets among them."""
    resets = draw(st.booleans())
    theirs, ours, input, *others = draw(networks(by_steps=resets, packs=False))
    assume(input.numel())
    theirs.dropout = ours.dropout = float(ours.dropout == 1)  # rows by themselves have other masks
    batched = input.dim() == 3
    steps = input.shape[1] if ours.batch_first and batched else input.shape[0]
    rows = input.numel() // (steps * input.shape[-1])
    numbers = draw(st.lists(st.integers(-1, steps + 1), min_size=rows, max_size=rows))
    assume(max(numbers) > 0)
    lengths = torch.tensor(numbers if batched else numbers[0], dtype=draw(st.sampled_from([torch.int64, torch.int32])))
    way = draw(st.sampled_from(WAYS))
    options, reset = {"lengths": lengths}, None
    if resets:
        torch.manual_seed(draw(st.integers(0, 99)))
        reset = random_mask(input, draw(st.sampled_from([0.2, 0.5])))
        options |= {"reset": reset, "reset_to": draw(st.sampled_from(["zero", "initial"]))}
    return ByRows(theirs, lengths, reset, options.get("reset_to", "")), OfLengths(ours, way, **options), input, *others


@settings(max_examples=150, **FAST)
@given(networks_with_lengths())
def test_networks_with_lengths_agree(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agree(*case)


@st.composite
def steps(draw):
    kind = draw(st.sampled_from(CELLS))
    features, hidden, dtype = draw(SIZES), draw(SIZES), draw(st.sampled_from(DTYPES))
    options = {"bias": draw(st.booleans()), "dtype": dtype}
    if kind == "RNNCell" and dtype not in HALVES:
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    theirs, ours = pair(kind, features, hidden, seed=draw(st.integers(0, 99)), **options)
    rows = draw(st.sampled_from([(), (0,), (1,), (3,), (8,)]))
    input = layouts(draw, *rows, features, dtype=dtype, requires_grad=draw(st.booleans()))
    hx = None
    if draw(st.booleans()):
        states = [layouts(draw, *rows, hidden, dtype=dtype, requires_grad=draw(st.booleans())) for _ in "hc"]
        hx = tuple(states) if kind == "LSTMCell" else states[0]
    return theirs, ours, input, hx


@settings(max_examples=200, **FAST)
@given(steps())
def test_cells_agree(case):
    agree(*case)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_long_and_wide(kind, dtype):
    theirs, ours = pair(kind, 37, 131, 2, bidirectional=True, dtype=dtype)
    agree(theirs, ours, torch.randn(25, 17, 37).to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_relu_in_half_precision(dtype, bidirectional):
    """Small integers, so that nothing is rounded: relu networks then agree to the last bit with f64."""
    theirs, ours = pair("RNN", 3, 5, 2, "relu", bidirectional=bidirectional, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad(), torch.device("cpu"):
        for parameter in theirs.parameters():
            some = torch.randint(-1, 2, parameter.shape, generator=generator)
            parameter.copy_(some * (torch.rand(parameter.shape, generator=generator) < 0.4))
        x = torch.randint(-1, 2, (3, 2, 3), generator=generator)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for module, kind in ((ours, dtype), (theirs, torch.float64)):
        module.to(kind)
        outputs = module(x.to(device(), kind))
        gradients = torch.autograd.grad(outputs[0].sum(), list(module.parameters()))
        results.append([*outputs, *gradients])
    for got, exact in zip(*results, strict=True):
        assert torch.equal(got.double(), exact)
        assert exact.abs().max() < 128
