"""``convert`` keeps everything about a model but the classes, and ``patched`` everything outside its block."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from devices import device, native_loops
from pairs import CELLS, KINDS, flat, pair, run
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fused_rnn

NAMES = [*KINDS, *CELLS]


class Mine(nn.LSTM):
    pass


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, 2, dropout=0.5)
        self.inner = nn.Sequential(nn.GRU(4, 4), nn.Linear(4, 4))
        self.again = self.lstm
        self.cell = nn.LSTMCell(3, 4)
        self.mine = Mine(3, 4)
        self.rnn = nn.RNN(3, 4, 1, "relu")


@pytest.mark.parametrize("kind", NAMES)
def test_a_module_itself_and_back(kind):
    theirs, _ = pair(kind, 3, 4)
    calls = []
    theirs.register_forward_hook(lambda *_: calls.append("forward"))
    theirs.register_forward_pre_hook(lambda *_: calls.append("pre"))
    theirs.register_full_backward_hook(lambda *_: calls.append("backward"))
    theirs.register_state_dict_post_hook(lambda *_: calls.append("state"))
    theirs.register_buffer("extra", torch.ones(2))
    theirs.eval().weight_hh = getattr(theirs, "weight_hh", None)
    next(theirs.parameters()).requires_grad_(False)
    before = dict(vars(theirs))
    parameters = dict(theirs.named_parameters())
    x = torch.randn(2, 3, requires_grad=True)
    with native_loops():  # it is in eval mode
        expected = run(theirs, x, None)

    report = fused_rnn.convert(theirs)
    assert type(theirs) is getattr(fused_rnn, kind)
    assert (len(report.swapped), len(report.left)) == (1, 0)
    assert f"(the model): torch.nn.modules.rnn.{kind} -> fused_rnn." in str(report)
    assert dict(vars(theirs)) == before
    assert all(theirs.get_parameter(name) is p for name, p in parameters.items())
    calls.clear()
    for a, b in zip(run(theirs, x, None), expected, strict=True):
        torch.testing.assert_close(a, b)
    theirs.state_dict()
    assert calls == ["pre", "forward", "backward", "state"]

    fused_rnn.convert(theirs, to="torch")
    assert type(theirs) is getattr(nn, kind)
    with native_loops():
        assert all(torch.equal(a, b) for a, b in zip(run(theirs, x, None), expected, strict=True))


def test_a_whole_model():
    model = Model()
    lstm, optimizer = model.lstm, torch.optim.SGD(model.parameters())
    report = fused_rnn.convert(model)
    assert type(model.lstm) is fused_rnn.LSTM
    assert model.lstm is model.again is lstm
    assert type(model.inner[0]) is fused_rnn.GRU
    assert type(model.cell) is fused_rnn.LSTMCell
    assert type(model.rnn) is fused_rnn.RNN
    assert type(model.mine) is Mine
    assert [swap.paths for swap in report.swapped] == [("lstm", "again"), ("inner.0",), ("cell",), ("rnn",)]
    assert [swap.paths for swap in report.left] == [("mine",)]
    assert "mine: " in str(report)
    assert "subclass" in str(report)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    again = fused_rnn.convert(model)
    assert (len(again.swapped), len(again.left)) == (0, 1)
    fused_rnn.convert(model, to="torch")
    assert type(model.lstm) is nn.LSTM
    assert type(model.mine) is Mine


def test_parametrized_modules():
    theirs, _ = pair("LSTM", 4, 4, dtype=torch.float64)
    parametrizations.weight_norm(theirs, "weight_hh_l0")
    twin = copy.deepcopy(theirs)
    fused_rnn.convert(theirs)
    assert isinstance(theirs, fused_rnn.LSTM)
    assert parametrize.is_parametrized(theirs, "weight_hh_l0")
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    for a, b in zip(run(theirs, x, None), run(twin, x, None), strict=True):
        torch.testing.assert_close(a, b)
    parametrize.remove_parametrizations(theirs, "weight_hh_l0")
    assert type(theirs) is fused_rnn.LSTM
    torch.testing.assert_close(theirs(x)[0], twin(x)[0])
    fused_rnn.convert(twin)
    fused_rnn.convert(twin, to="torch")
    parametrize.remove_parametrizations(twin, "weight_hh_l0")
    assert type(twin) is nn.LSTM


def test_what_cannot_be_swapped_is_told():
    replaced = nn.GRU(3, 4)
    replaced.forward = lambda x: x
    traced = torch.jit.trace(nn.GRU(3, 4), torch.randn(2, 1, 3))
    report = fused_rnn.convert(nn.ModuleList([replaced, traced, nn.Linear(2, 2)]))
    assert [swap.paths for swap in report.left] == [("0",), ("1",)]
    assert "forward" in str(report.left[0])
    assert "TorchScript" in str(report.left[1])
    with pytest.raises(ValueError, match="must be"):
        fused_rnn.convert(replaced, to="keras")


def test_patched():
    places = [torch.nn, torch.nn.modules, sys.modules["torch.nn.modules.rnn"]]
    before = [getattr(place, name) for place in places for name in NAMES]
    with fused_rnn.patched():
        assert all(getattr(place, name) is getattr(fused_rnn, name) for place in places for name in NAMES)
        module = nn.LSTM(3, 4, 2, bidirectional=True)
        assert type(module) is fused_rnn.LSTM
        assert isinstance(module, nn.RNNBase)
        with fused_rnn.patched():
            pass
        assert nn.GRU is fused_rnn.GRU
        assert flat(copy.deepcopy(module)(torch.randn(2, 1, 3)))
    with pytest.raises(KeyError):
        with fused_rnn.patched():
            raise KeyError
    assert [getattr(place, name) for place in places for name in NAMES] == before


def test_put_in_torchs_place_by_hand(monkeypatch):
    theirs, _ = pair("GRU", 3, 4)
    for name in NAMES:
        monkeypatch.setattr(nn, name, getattr(fused_rnn, name))
        monkeypatch.setattr(sys.modules["torch.nn.modules.rnn"], name, getattr(fused_rnn, name))
    x = torch.randn(2, 3)
    for name in NAMES:
        run(getattr(nn, name)(3, 4), x, None)
    run(nn.LSTM(3, 4, device="meta").to_empty(device=device()), x, None)
    nn.RNN(3, 4, dtype=torch.complex64)(x.to(torch.complex64))
    expected = run(theirs, x, None)
    report = fused_rnn.convert(theirs)
    assert len(report.swapped) == 1
    for a, b in zip(run(theirs, x, None), expected, strict=True):
        torch.testing.assert_close(a, b)
