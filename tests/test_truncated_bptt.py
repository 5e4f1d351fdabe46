"""Truncated BPTT: gradients of the loop that detaches, of each row alone in modules of torch's; what is kept."""

from __future__ import annotations

import weakref

import pytest
import torch
from episodes import random_mask
from layer_cases import assert_close
from pairs import flat, pair
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
from fused_rnn import truncated_bptt

T, B, I, H = 11, 4, 3, 5
KINDS = ["LSTM", "GRU", "RNN"]
F64 = {"dtype": torch.float64}


def state_of(module, *batch):
    """A random state that gradients flow into."""
    h = torch.randn(module.num_layers, *batch, H, **F64).requires_grad_()
    return (h, torch.randn(module.num_layers, *batch, H, **F64).requires_grad_()) if module.mode == "LSTM" else h


def detached(state):
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()


def row(state, b):
    return tuple(part[:, b : b + 1] for part in state) if isinstance(state, tuple) else state[:, b : b + 1]


def loss_of(values, state):
    """Of the outputs of a chunk, and of its last state."""
    return values.sin().sum() + sum(part.square().sum() for part in flat(state))


def gradients(loss, module, hx):
    return torch.autograd.grad(loss, [*module.parameters(), *flat(hx)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_loop(kind, batch_first):
    """Bit for bit that of hand, over T in one go, too; a loss that is summed up, and chunks that are backpropagated."""
    module = getattr(fused_rnn, kind)(I, H, 2, batch_first=batch_first, **F64)
    dim = int(batch_first)
    x, hx = torch.randn(*((B, T) if batch_first else (T, B)), I, **F64), state_of(module, B)
    mask, lengths = random_mask(x), torch.tensor([11, 2, 0, 7], dtype=torch.uint8)
    for steps in (1, 4, T, 100):
        state, begin, want = hx, 0, 0
        for chunk in x.split(steps, dim):
            now = mask.narrow(dim, begin, chunk.shape[dim])
            y, state = module(chunk, state, reset=now, lengths=(lengths.long() - begin).clamp(min=0))
            want = want + loss_of(y, state)
            begin, state = begin + chunk.shape[dim], detached(state)
        want = gradients(want, module, hx)

        chunks = list(truncated_bptt(module, x, steps, hx, reset=mask, lengths=lengths))
        got = gradients(sum(loss_of(y, state) for y, state, _ in chunks), module, hx)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        where = torch.cat([torch.arange(T)[part] for *_, part in chunks])
        assert torch.equal(where, torch.arange(T))
        assert [y.shape[dim] for y, *_ in chunks] == [part.stop - part.start for *_, part in chunks]

        summed = [torch.zeros_like(part) for part in got]
        for y, state, _ in truncated_bptt(module, x, steps, hx, reset=mask, lengths=lengths):
            of_chunk = torch.autograd.grad(
                loss_of(y, state), [*module.parameters(), *flat(hx)], allow_unused=True, materialize_grads=True
            )
            summed = [a + b for a, b in zip(summed, of_chunk, strict=True)]
        assert_close(summed, got)
    plain, last = module(x, hx, reset=mask, lengths=lengths)
    assert_close(got, gradients(loss_of(plain, last), module, hx))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["lengths", "packed", "sorted"])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_rows_of_their_own_lengths(kind, way, steps):
    """Each row alone, in a module of torch's."""
    theirs, ours = pair(kind, I, H, 2, **F64)
    lengths = [9, 9, 4, 1] if way == "sorted" else [4, 9, 1, 9]
    x, hx = torch.randn(9, B, I, **F64), state_of(ours, B)
    want, finals = 0, []
    for b, length in enumerate(lengths):
        state = row(hx, b)
        for chunk in x[:length, b : b + 1].split(steps):
            y, after = theirs(chunk, state)
            want, state = want + y.sin().sum(), detached(after)
        finals.append(after)
        want = want + loss_of(y[:0], after)
    want = gradients(want, theirs, hx)

    input, options = x, {"lengths": torch.tensor(lengths)}
    if way != "lengths":
        input, options = pack_padded_sequence(x, lengths, enforce_sorted=way == "sorted"), {}
    got, seen, before = 0, [], 0
    for y, state, part in truncated_bptt(ours, input, steps, hx, **options):
        values = y
        if way != "lengths":
            values = y.data
            assert torch.equal(torch.arange(len(input.data))[part], torch.arange(before, before + len(values)))
            padded, there = nn.utils.rnn.pad_packed_sequence(y)
            assert there.tolist() == [min(n - len(seen) * steps, steps) for n in lengths if n > len(seen) * steps]
            assert padded.shape[1] == len(there)
            before += len(values)
        got = got + values.sin().sum()
        seen.append(state)
    for b, length in enumerate(lengths):  # the state in which the row ended
        got = got + loss_of(got[None][:0], row(seen[(length - 1) // steps], b))
        for mine, final in zip(flat(row(seen[-1], b)), flat(finals[b]), strict=True):
            assert_close(mine, final)
    assert_close(gradients(got, ours, hx), want)


def test_reset_of_a_packed_sequence():
    module, lengths = fused_rnn.GRU(I, H, **F64), torch.tensor([4, 9, 1, 9])
    x = torch.randn(9, B, I, **F64)
    mask, hx = random_mask(x), state_of(module, B)

    def packed(rows):
        return pack_padded_sequence(rows, lengths.cpu(), enforce_sorted=False)

    def total(input, mask, values, **options):
        return sum(values(y).sin().sum() for y, *_ in truncated_bptt(module, input, 4, hx, reset=mask, **options))

    got = total(packed(x), packed(mask), lambda y: y.data)
    want = total(x, mask, lambda y: y, lengths=lengths)
    assert_close(gradients(got, module, hx), gradients(want, module, hx))
    other = pack_padded_sequence(mask, lengths.flip(0), enforce_sorted=False)
    with pytest.raises(RuntimeError, match="reset must be packed as input is"):
        truncated_bptt(module, packed(x), 4, reset=other)


def test_weights_move_between_chunks():
    """As in the loop: each chunk has those of its moment."""
    theirs, ours = pair("LSTM", I, H, **F64)
    x, losses = torch.randn(T, B, I, **F64), ([], [])
    optimizers = [torch.optim.SGD(module.parameters(), 0.1) for module in (theirs, ours)]

    def by_hand(module):
        state = None
        for chunk in x.split(3):
            y, state = module(chunk, state)
            yield y
            state = detached(state)

    ways = (by_hand(theirs), (y for y, *_ in truncated_bptt(ours, x, 3)))
    for way, optimizer, own in zip(ways, optimizers, losses, strict=True):
        for y in way:
            loss = (y - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            own.append(loss.detach())
    assert_close(losses[1], losses[0])
    assert losses[0][-1] < losses[0][0]


@pytest.mark.cpu_only("what is kept is counted in Python, of tensors of the CPU")
def test_memory_is_that_of_a_chunk():
    module = fused_rnn.LSTM(I, H, 2)

    def kept(chunks, backward):
        """How many bytes autograd holds at most."""
        alive, most = weakref.WeakSet(), 0

        class Held:
            def __init__(self, tensor):
                nonlocal most
                self.tensor = tensor
                alive.add(self)
                most = max(most, sum(held.tensor.numel() for held in alive))

        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            outputs = []
            for y, _, _ in truncated_bptt(module, torch.randn(4 * chunks, B, I), 4):
                if backward:
                    y.sum().backward()
                else:
                    outputs.append(y)
        return most

    weights = 2 * sum(parameter.numel() for parameter in module.parameters())  # of the chunk before and of this one
    assert kept(20, True) <= kept(2, True) + weights
    assert kept(20, False) > 5 * kept(2, False)


class Model(nn.Module):
    """What a user has: tokens in, [B, T], scores out; the states in a dict."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, I, **F64), nn.Linear(H, 7, **F64)
        self.gru = fused_rnn.GRU(I, H, batch_first=True, **F64)

    def forward(self, tokens, state=None):
        y, h = self.gru(self.embedding(tokens), None if state is None else state["h"])
        return self.head(y), {"h": h}


def test_a_model():
    model, tokens = Model(), torch.randint(7, (B, T))
    got, want, state = 0, 0, None
    for scores, _, part in truncated_bptt(model, tokens, 4, dim=1):
        got = got + nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, part].flatten())
    for chunk in tokens.split(4, 1):
        scores, state = model(chunk, state)
        want, state = (
            want + nn.functional.cross_entropy(scores.flatten(0, 1), chunk.flatten()),
            {"h": state["h"].detach()},
        )
    weights = list(model.parameters())
    got, want = (torch.autograd.grad(loss, weights) for loss in (got, want))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_unbatched_and_modules_of_torch():
    theirs, ours = pair("LSTM", I, H, batch_first=True, **F64)
    x = torch.randn(T, I, **F64)
    got, want = ([(y, *state) for y, state, _ in truncated_bptt(module, x, 4)] for module in (ours, theirs))
    assert [y.shape for y, *_ in got] == [(4, H), (4, H), (3, H)]
    assert_close(got, want)
    (y, c), _, _ = next(truncated_bptt(ours, x, 4, cells=True))
    assert y.shape == c.shape == (4, H)
    compiled = torch.compile(ours, backend="eager")
    assert_close([(y, *state) for y, state, _ in truncated_bptt(compiled, x, 4)], want)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"steps": 0}, ValueError, "steps must be a positive int, got 0"),
        ({"steps": 2.0}, ValueError, "steps must be a positive int, got 2.0"),
        ({"reset_to": "initial"}, ValueError, "resets to zero"),
        ({"reset": torch.zeros(T, B)}, TypeError, "reset must be a bool tensor, got torch.float32"),
        ({"reset": [True]}, TypeError, "reset must be a bool tensor, got list"),
        ({"lengths": torch.full((B,), 2.0)}, TypeError, "lengths must be an integer tensor, got torch.float32"),
        ({"lengths": [2] * B}, TypeError, "lengths must be an integer tensor, got list"),
        (
            {"reset": torch.zeros(T - 1, B, dtype=torch.bool)},
            RuntimeError,
            r"Expected reset size \(11, 4\), got \[10, 4\]",
        ),
    ],
)
def test_what_is_refused(options, error, text):
    """By the call, before the first chunk."""
    with pytest.raises(error, match=text):
        truncated_bptt(fused_rnn.GRU(I, H), torch.zeros(T, B, I), **{"steps": 3, **options})


def test_what_else_is_refused():
    with pytest.raises(ValueError, match="modules of one direction"):
        truncated_bptt(nn.GRU(I, H, bidirectional=True), torch.zeros(T, B, I), 3)
    packed = PackedSequence(torch.zeros(5, I), torch.tensor([2, 2, 1], device="cpu"))
    with pytest.raises(ValueError, match="lengths must be None where input is a PackedSequence"):
        truncated_bptt(fused_rnn.GRU(I, H), packed, 3, lengths=torch.tensor([3, 2]))
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0"):
        list(truncated_bptt(fused_rnn.GRU(I, H), torch.zeros(0, B, I), 3))


def test_time_counted_from_the_end():
    gru, x, mask = fused_rnn.GRU(I, H, batch_first=True), torch.randn(B, T, I), torch.rand(B, T) < 0.3
    chunks = [[y for y, *_ in truncated_bptt(gru, x, 4, dim=dim, reset=mask)] for dim in (1, -2)]
    torch.testing.assert_close(chunks[1], chunks[0])
