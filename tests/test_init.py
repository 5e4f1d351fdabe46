"""``fused_rnn.init``: what each initialisation promises, on every kind of module, and nothing else touched."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import fused_rnn
from fused_rnn import init

OPTIONS = [{}, {"num_layers": 2, "bidirectional": True}]


def modules(kind):
    found = [getattr(place, kind)(5, 6, **options) for place in (fused_rnn, nn) for options in OPTIONS]
    return [*found, getattr(fused_rnn, kind + "Cell")(5, 6), getattr(nn, kind + "Cell")(5, 6)]


def all_but(module, *kinds):
    """Every parameter whose name begins with none of ``kinds``."""
    return {n: p.detach().clone() for n, p in module.named_parameters() if not n.startswith(kinds)}


def biases(module, gate):
    """b_ih + b_hh of one gate, layer by layer."""
    named = dict(module.named_parameters())
    sums = [b + named[n.replace("bias_ih", "bias_hh")] for n, b in named.items() if n.startswith("bias_ih")]
    return [b.detach()[gate * 6 : (gate + 1) * 6] for b in sums]


def recurrent(module):
    return [p.detach() for n, p in module.named_parameters() if n.startswith("weight_hh")]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_orthogonal(kind):
    for module in modules(kind):
        before = all_but(module, "weight_hh")
        assert init.orthogonal_(module, 1.5) is module
        for weight in recurrent(module):
            for part in weight.split(6):
                torch.testing.assert_close(part @ part.T, 2.25 * torch.eye(6), rtol=0, atol=1e-5)
        torch.testing.assert_close(all_but(module, "weight_hh"), before, rtol=0, atol=0)


def test_orthogonal_with_projection():
    module = init.orthogonal_(fused_rnn.LSTM(5, 6, proj_size=4))
    for part in module.weight_hh_l0.detach().split(6):
        torch.testing.assert_close(part.T @ part, torch.eye(4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_identity_keeps_a_state_for_ever(nonlinearity):
    for options in OPTIONS:
        module = init.identity_(fused_rnn.RNN(5, 6, nonlinearity=nonlinearity, **options), 0.5, input_std=None)
        assert all(torch.equal(weight, 0.5 * torch.eye(6)) for weight in recurrent(module))
        assert not any(bias.any() for bias in biases(module, 0))
    module = init.identity_(fused_rnn.RNN(5, 6, nonlinearity="relu"))
    assert 0 < module.weight_ih_l0.std() < 3e-3
    h0 = torch.rand(1, 2, 6)
    torch.testing.assert_close(module(torch.zeros(300, 2, 5), h0)[1], h0)


def test_forget_bias():
    for module in modules("LSTM"):
        before, others = all_but(module, "bias"), [biases(module, gate) for gate in (0, 2, 3)]
        init.forget_bias_(module, 2.0)
        assert all(torch.equal(b, torch.full((6,), 2.0)) for b in biases(module, 1))
        torch.testing.assert_close(all_but(module, "bias"), before, rtol=0, atol=0)
        torch.testing.assert_close([biases(module, gate) for gate in (0, 2, 3)], others, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "keeps"), [("LSTM", 1), ("GRU", 1)])
def test_chrono(kind, keeps):
    for module in modules(kind):
        before, last = all_but(module, "bias"), biases(module, 2)
        init.chrono_(module, max_steps=100, min_steps=10)
        for layer, bias in enumerate(biases(module, keeps)):
            assert (bias >= math.log(9)).all()
            assert (bias <= math.log(99) + 1e-6).all()
            assert bias.unique().numel() == 6
            if kind == "LSTM":
                assert torch.equal(biases(module, 0)[layer], -bias)
        torch.testing.assert_close(all_but(module, "bias"), before, rtol=0, atol=0)
        torch.testing.assert_close(biases(module, 2), last, rtol=0, atol=0)


def test_chrono_remembers_as_long_as_it_says():
    """Without input a unit with forget gate sigmoid(log(T - 1)) = 1 - 1/T keeps 1/e of its cell state over T steps."""
    module = fused_rnn.LSTM(1, 4)
    for weight in module.parameters():
        weight.data.zero_()
    init.chrono_(module, max_steps=50, min_steps=50)
    c0 = torch.ones(1, 1, 4)
    c = module(torch.zeros(50, 1, 1), (torch.zeros(1, 1, 4), c0))[1][1]
    torch.testing.assert_close(c, torch.full_like(c, (1 - 1 / 50) ** 50), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["orthogonal", "identity", "forget_bias", "chrono"])
def test_by_name_and_reproducible(name):
    kind = "RNN" if name == "identity" else "LSTM"
    arguments = {"max_steps": 30} if name == "chrono" else {}
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        module = getattr(nn, kind)(5, 6)
        if name != "forget_bias":
            arguments["generator"] = torch.Generator(module.weight_ih_l0.device).manual_seed(3)
        torch.rand(len(results) + 1)  # the global generator is somewhere else each time
        assert init.apply_(module, name, **arguments) is module
        results.append(all_but(module, "nothing"))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: init.orthogonal_(nn.Linear(3, 3)), TypeError, "expected an LSTM, GRU or RNN module, or a cell of one"),
        (lambda: init.forget_bias_(nn.GRU(3, 3)), TypeError, "GRU has no such gate"),
        (lambda: init.chrono_(nn.RNN(3, 3), 9), TypeError, "RNN has no such gate"),
        (lambda: init.identity_(nn.LSTM(3, 3)), TypeError, "LSTM has no such gate"),
        (lambda: init.forget_bias_(nn.LSTM(3, 3, bias=False)), ValueError, "the module has no biases (bias=False)"),
        (
            lambda: init.chrono_(nn.LSTM(3, 3), 1.5),
            ValueError,
            "expected 1 < min_steps <= max_steps < inf, got 2.0 and 1.5",
        ),
        (lambda: init.chrono_(nn.LSTM(3, 3), math.inf), ValueError, "expected 1 < min_steps <= max_steps < inf"),
        (lambda: init.identity_(nn.RNN(3, 3), input_std=-1), ValueError, "expected an input_std of 0 or more, got -1"),
        (lambda: init.identity_(nn.RNN(3, 3), math.nan), ValueError, "expected a finite gain, got nan"),
        (lambda: init.orthogonal_(nn.RNN(3, 3), math.inf), ValueError, "expected a finite gain, got inf"),
        (lambda: init.forget_bias_(nn.LSTM(3, 3), math.nan), ValueError, "expected a finite value, got nan"),
        (lambda: init.orthogonal_(weight_norm(nn.LSTM(3, 3), "weight_hh_l0")), ValueError, "a weight of the module is"),
        (
            lambda: init.chrono_(weight_norm(nn.GRU(3, 3), "bias_hh_l0"), 9),
            ValueError,
            "a weight of the module is made",
        ),
        (lambda: init.apply_(nn.LSTM(3, 3), "xavier"), ValueError, "no initialisation is called 'xavier': there are"),
    ],
)
def test_refused(call, error, text):
    with pytest.raises(error, match="^" + re.escape(text)):
        call()


def test_the_page_has_every_function(request):
    page = (request.config.rootpath / "docs" / "initialisation.md").read_text()
    assert all(f"`{name}" in page and f"init.{name}(" in page for name in init.__all__)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_orthogonal_in_16_bits(dtype):
    module = init.orthogonal_(fused_rnn.GRU(3, 8, dtype=dtype), 2.0)
    for part in module.weight_hh_l0.detach().float().split(8):
        torch.testing.assert_close(part @ part.T, 4 * torch.eye(8), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("orthogonal", "weight_hh_l1"),
        ("identity", "bias_hh_l1"),
        ("forget_bias", "bias_ih_l1"),
        ("chrono", "bias_hh_l1"),
    ],
)
def test_what_is_refused_changes_nothing(name, weight):
    module = (fused_rnn.RNN if name == "identity" else fused_rnn.LSTM)(3, 4, 2)
    prune.identity(module, weight)
    before = [parameter.clone() for parameter in module.parameters()]
    with pytest.raises(ValueError, match="a weight of the module is made of others"):
        init.apply_(module, name, **({"max_steps": 9} if name == "chrono" else {}))
    for parameter, old in zip(module.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


@pytest.mark.parametrize("cell", ["LSTM", "LSTMCell"])
@pytest.mark.parametrize("function", [init.forget_bias_, lambda m: init.chrono_(m, 50, 50)], ids=["forget", "chrono"])
def test_both_biases_one_parameter(function, cell):
    """It counts twice; the sum is what was asked for."""
    module = getattr(fused_rnn, cell)(5, 6, dtype=torch.float64)
    apart = function(getattr(fused_rnn, cell)(5, 6, dtype=torch.float64))
    suffix = "" if cell.endswith("Cell") else "_l0"
    setattr(module, "bias_ih" + suffix, getattr(module, "bias_hh" + suffix))
    function(module)
    tied = getattr(module, "bias_hh" + suffix).detach()
    (want,) = biases(apart, 1)
    torch.testing.assert_close(2 * tied[6:12], want)
