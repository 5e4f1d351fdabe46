"""``recompute=True`` as a program meets it: what is kept, what comes out, and the option's way through copies.

The ops in this mode are tested with the others (test_loop.py, test_isa.py), its derivatives in test_gradcheck.py,
test_transforms.py and test_compile.py, and all of it with other options in test_differential.py.
"""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from devices import device
from pairs import KINDS, agree, pair, run
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn

T, B, I, H = 30, 4, 3, 8


def modules(kind: str, hidden: int = H, **options) -> tuple[nn.Module, nn.Module]:
    """(one that keeps everything, one that recomputes), of the same parameters."""
    plain = getattr(fused_rnn, kind)(I, hidden, **options)
    recomputing = getattr(fused_rnn, kind)(I, hidden, recompute=True, **options)
    recomputing.load_state_dict(plain.state_dict())
    return plain, recomputing


def kept_values(module: nn.Module, x: torch.Tensor) -> int:
    """How many values one training forward keeps, beside inputs and parameters."""
    given = {t.untyped_storage().data_ptr() for t in (x, *module.parameters())}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = module(x)
    del outputs
    return sum(count for where, count in kept.items() if where not in given)


@pytest.mark.parametrize(
    ("kind", "options", "all_of_a_row", "states_of_a_row"),
    [
        ("LSTM", {}, H + 5 * H, H + H),
        ("LSTM", {"proj_size": 2}, 2 + 5 * H, 2 + H),
        ("LSTM", {"bidirectional": True}, 2 * (H + 5 * H), 2 * (H + H)),
        ("GRU", {}, 5 * H, H),
        ("GRU", {"bidirectional": True}, 2 * 5 * H, 2 * H),
        ("RNN", {}, H, H),
    ],
)
def test_what_is_kept(kind, options, all_of_a_row, states_of_a_row):
    x = torch.randn(T, B, I)
    few = 4 * B * H  # initial states
    for module, of_a_row in zip(modules(kind, **options), (all_of_a_row, states_of_a_row), strict=True):
        assert 0 <= kept_values(module, x) - T * B * of_a_row <= few


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_beside_the_mode_that_keeps_everything(kind, options, dtype, packed):
    """The same outputs, bit by bit; gradients within rounding. LSTM and GRU have some pieces of time here, of 4 MB."""
    plain, recomputing = modules(kind, 80, dtype=dtype, **options)
    x = torch.randn(160, 64, I, dtype=dtype, requires_grad=True)
    input = pack_padded_sequence(x, [160 - 2 * b for b in range(64)]) if packed else x
    outputs = 3 if kind == "LSTM" else 2
    want, got = run(plain, input, None), run(recomputing, input, None)
    assert all(torch.equal(a, b) for a, b in zip(got[:outputs], want[:outputs], strict=True))
    eps = torch.finfo(dtype).eps
    for a, b in zip(got[outputs:], want[outputs:], strict=True):
        assert (a - b).abs().max() <= 200 * eps * b.abs().max()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_final_states_only(kind, which):
    want, got = [], []
    for module, grads in zip(modules(kind, num_layers=2, dtype=torch.float64), (want, got), strict=True):
        _, states = module(torch.linspace(-1, 1, T * B * I, dtype=torch.float64).view(T, B, I))
        states = states if kind == "LSTM" else (states, states)
        grads += torch.autograd.grad(states[which].sum(), list(module.parameters()))
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind):
    plain, recomputing = modules(kind)
    x = torch.randn(T, B, I)
    with torch.autocast(device().type, torch.bfloat16):
        want, got = run(plain, x, None), run(recomputing, x, None)
    exact = run(plain.double(), x.double(), None)
    for a, b, truth in zip(got, want, exact, strict=True):
        assert a.dtype == b.dtype
        assert (a - truth).abs().max() <= 2 * (b - truth).abs().max() + 0.01 * truth.abs().max()


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_functions(kind):
    name, *nonlinearity = kind.split("_")
    module = getattr(fused_rnn, name.upper())(I, H, 2, *nonlinearity)
    function = getattr(fused_rnn.functional, kind)
    x, params = torch.randn(T, B, I), list(module.parameters())
    kept = []

    def pack(tensor):
        kept[-1] += tensor.numel()
        return tensor

    gradients = []
    for recompute in (False, True):
        kept.append(0)
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            y, _ = function(x, None, params, num_layers=2, recompute=recompute)
        gradients.append(torch.autograd.grad(y.sum(), params))
    torch.testing.assert_close(*gradients)
    assert kept[1] < kept[0] or name == "rnn"


class TestOption:
    @pytest.mark.parametrize("kind", KINDS)
    def test_by_keyword_and_in_the_repr(self, kind):
        plain, recomputing = modules(kind)
        assert (plain.recompute, recomputing.recompute) == (False, True)
        assert repr(recomputing) == repr(plain).replace(")", ", recompute=True)")
        recomputing.recompute = False
        assert repr(recomputing) == repr(plain)

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_may_change_at_any_time(self, kind):
        module, _ = modules(kind)
        x = torch.randn(T, B, I)
        before = kept_values(module, x)
        module.recompute = True
        assert kept_values(module, x) < before or kind == "RNN"
        module.recompute = False
        assert kept_values(module, x) == before

    @pytest.mark.parametrize("kind", KINDS)
    def test_copies(self, kind):
        for module in modules(kind):
            buffer = io.BytesIO()
            torch.save(module, buffer)
            buffer.seek(0)
            loaded = torch.load(buffer, weights_only=False)
            for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
                assert twin.recompute is module.recompute

    @pytest.mark.parametrize("kind", KINDS)
    def test_converted(self, kind):
        for module in modules(kind):
            before, recompute = kept_values(module, torch.ones(T, B, I)), module.recompute
            fused_rnn.convert(module, to="torch")
            fused_rnn.convert(module)
            assert module.recompute is recompute
            assert kept_values(module, torch.ones(T, B, I)) == before
        theirs, _ = pair(kind, I, H)
        fused_rnn.convert(theirs)
        assert theirs.recompute is False

    def test_in_the_place_of_torchs(self):
        with fused_rnn.patched():
            assert nn.GRU(I, H, recompute=True).recompute

    def test_where_torchs_functions_run(self):
        theirs, ours = pair("LSTM", I, H, dtype=torch.complex64, device="cpu")
        ours.recompute = True
        x = torch.randn(T, B, I, dtype=torch.complex64, device="cpu")
        assert torch.equal(ours(x)[0], theirs(x)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_parts_and_given_states(kind):
    theirs, ours = pair(kind, I, H, 2, bidirectional=True, dtype=torch.float64)
    ours.recompute = True
    for module in (theirs, ours):
        module.weight_hh_l0.requires_grad_(False)
        module.bias_ih_l1_reverse.requires_grad_(False)
    h = torch.randn(4, B, H, dtype=torch.float64, requires_grad=True)
    agree(theirs, ours, torch.randn(T, B, I, dtype=torch.float64), (h, 2 * h.detach()) if kind == "LSTM" else h)
