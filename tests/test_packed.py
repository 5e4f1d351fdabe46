"""Packed sequences: against ``torch.nn``, against each sequence by itself, and in cost."""

from __future__ import annotations

import time

import pytest
import torch
from devices import on_cpu, pack_sequence, synchronize
from pairs import KINDS, agree, flat, leaves, pair
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fused_rnn import autograd, network

F64 = torch.float64


def packed(lengths, features=3, enforce_sorted=False, dtype=F64, requires_grad=False):
    data = torch.randn(max(lengths), len(lengths), features, dtype=dtype)
    sequence = pack_padded_sequence(data, lengths, enforce_sorted=enforce_sorted)
    return sequence._replace(data=sequence.data.detach().requires_grad_(requires_grad))


@pytest.mark.parametrize("lengths", [[5, 4, 2], [2, 5, 1, 5], [1, 1], [7], [3, 3, 3]], ids=str)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_as_torch(kind, options, lengths):
    theirs, ours = pair(kind, 3, 4, dtype=F64, **options)
    agree(theirs, ours, packed(lengths, requires_grad=True), seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_as_by_itself(kind):
    _, ours = pair(kind, 3, 4, 2, bidirectional=True, dtype=F64)
    rows = [torch.randn(n, 3, dtype=F64) for n in (2, 6, 1, 4)]
    h = torch.randn(4, 4, 4, dtype=F64)
    hx = (h, h + 1) if kind == "LSTM" else h
    y, hn = ours(pack_sequence(rows, enforce_sorted=False), hx)
    y, lengths = pad_packed_sequence(y)
    assert lengths.tolist() == [2, 6, 1, 4]
    for b, row in enumerate(rows):
        own = (h[:, b], h[:, b] + 1) if kind == "LSTM" else h[:, b]
        y_own, hn_own = ours(row, own)
        torch.testing.assert_close(y[: len(row), b], y_own, rtol=1e-12, atol=1e-12)
        assert not y[len(row) :, b].any()
        for whole, part in zip(flat(hn), flat(hn_own), strict=True):
            torch.testing.assert_close(whole[:, b], part, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_result_is_packed_alike(kind, enforce_sorted):
    theirs, ours = pair(kind, 3, 4)
    x = packed([5, 3, 3], enforce_sorted=enforce_sorted, dtype=torch.float32)
    expected, got = theirs(x)[0], ours(x)[0]
    assert type(got) is PackedSequence
    assert torch.equal(got.batch_sizes, expected.batch_sizes)
    for a, b in zip(got[2:], expected[2:], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_one_call_a_layer(kind, monkeypatch):
    _, ours = pair(kind, 3, 4, 3, bidirectional=True)
    calls = []

    def counted(*args):
        calls.append(args)
        return autograd.layer(*args)

    monkeypatch.setattr(network, "layer", counted)
    ours(packed([50, 30, 7], dtype=torch.float32))
    assert len(calls) == 3


def test_lengths_that_contradict_the_data():
    """What ``pack_padded_sequence`` makes of a length beyond T, or a hand-made sequence, must not be read past."""
    data = torch.randn(6, 3)
    for sizes in ([4, 3], [2, 3, 1], [3, 2], [7, -1]):
        for kind in KINDS:
            _, ours = pair(kind, 3, 4)
            with pytest.raises(RuntimeError):
                ours(PackedSequence(data, torch.tensor(sizes, device="cpu")))


@pytest.mark.parametrize("kind", KINDS)
def test_training_cost_is_linear_in_time(kind, threads):
    """torch's grows with the square: at four times the steps its backward takes over ten times as long."""
    threads(1)  # a barrier on a busy machine would be what is measured
    _, ours = pair(kind, 16, 16)
    now = time.process_time if on_cpu() else time.perf_counter  # the first does not see what else the machine does

    def cost(steps):
        x = packed([steps] * 4 + [steps // 2] * 4, 16, enforce_sorted=True, dtype=torch.float32, requires_grad=True)
        best = float("inf")
        for _ in range(5):
            synchronize()
            begin = now()
            torch.autograd.grad(ours(x)[0].data.sum(), leaves(x, list(ours.parameters())))
            synchronize()
            best = min(best, now() - begin)
        return best

    cost(400)
    assert cost(1600) < 8 * cost(400)
