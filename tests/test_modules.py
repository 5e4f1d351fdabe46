"""The surface of the modules beside that of ``torch.nn``: construction, parameters, state, and the odd ways of use."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
import weakref

import pytest
import torch
from devices import device, native_loops, on_cpu, rng_state
from pairs import CELLS, KINDS, agree, leaves, pair, run
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fused_rnn

OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "batch_first": True},
    {"num_layers": 3, "dropout": 0.4},
    {"num_layers": 2, "proj_size": 2, "bidirectional": True},
    {"dtype": torch.bfloat16},
]


def made(kind, options, library):
    if kind != "LSTM" and "proj_size" in options:
        options = {key: value for key, value in options.items() if key != "proj_size"}
    torch.manual_seed(3)
    return getattr(library, kind)(4, 6, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_same_parameters_under_the_same_seed(kind, options):
    theirs, ours = made(kind, options, nn), made(kind, options, fused_rnn)
    assert isinstance(ours, nn.RNNBase)
    assert not isinstance(ours, getattr(nn, kind))
    assert repr(ours) == repr(theirs)
    mine, others = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert list(mine) == list(others)
    assert all(torch.equal(mine[name], others[name]) for name in mine)
    assert ours._flat_weights_names == theirs._flat_weights_names
    assert [[id(w) for w in layer] for layer in ours.all_weights] == [
        [id(getattr(ours, name)) for name in names] for names in theirs._all_weights
    ]
    shared = set(vars(theirs)) - {"_flat_weights", "_flat_weight_refs", "_parameters"}
    assert set(vars(ours)) == set(vars(theirs))
    assert {key: vars(ours)[key] for key in shared} == {key: vars(theirs)[key] for key in shared}
    assert type(ours).__constants__ == type(theirs).__constants__
    assert ours.flatten_parameters() is None
    assert ours.load_state_dict(theirs.state_dict()) == theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("bias", [True, False])
def test_same_cell_under_the_same_seed(kind, bias):
    theirs, ours = made(kind, {"bias": bias}, nn), made(kind, {"bias": bias}, fused_rnn)
    assert isinstance(ours, nn.RNNCellBase)
    assert repr(ours) == repr(theirs)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert ours.load_state_dict(theirs.state_dict()) == theirs.load_state_dict(ours.state_dict())
    assert type(ours).__constants__ == type(theirs).__constants__


def test_positional_arguments():
    assert fused_rnn.RNN(3, 4, 1, "relu").mode == "RNN_RELU"
    assert fused_rnn.RNN(3, 4, 2, "tanh", False, True, 0.1, True).extra_repr() == (
        nn.RNN(3, 4, 2, "tanh", False, True, 0.1, True).extra_repr()
    )
    assert fused_rnn.LSTM(3, 4, 1, True, True, 0.0, True, 2).extra_repr() == (
        nn.LSTM(3, 4, 1, True, True, 0.0, True, 2).extra_repr()
    )
    assert repr(fused_rnn.RNNCell(3, 4, True, "relu")) == repr(nn.RNNCell(3, 4, True, "relu"))


def saved_and_loaded(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_copies_are_whole_and_separate(kind, copied):
    _, ours = pair(kind, 3, 5)
    x = torch.randn(2, 3)
    twin = copied(ours)
    assert type(twin) is type(ours)
    before = run(ours, x, None)
    assert all(torch.equal(a, b) for a, b in zip(run(twin, x, None), before, strict=True))
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert all(torch.equal(a, b) for a, b in zip(run(ours, x, None), before, strict=True))
    assert not torch.equal(run(twin, x, None)[0], before[0])


def test_a_state_without_later_attributes_loads():
    """Modules pickled before torch 1.8 have no proj_size, and older ones keep the weights in ``all_weights``."""
    _, ours = pair("LSTM", 3, 4, 2, bidirectional=True)
    state = ours.__getstate__()
    del state["proj_size"]
    state["all_weights"] = state.pop("_all_weights")
    state["all_weights"] = [list(layer) for layer in ours.all_weights]
    state["_all_weights"] = None
    old = fused_rnn.LSTM.__new__(fused_rnn.LSTM)
    old.__setstate__(state)
    assert old._all_weights == ours._all_weights
    x = torch.randn(2, 1, 3)
    assert torch.equal(old(x)[0], ours(x)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_to_another_dtype_and_back(kind):
    theirs, ours = pair(kind, 3, 4, 2)
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        agree(theirs.to(dtype), ours.to(dtype), torch.randn(3, 2, 3).to(dtype))
        assert all(w.dtype == dtype for w in ours._flat_weights)


@pytest.mark.parametrize("kind", KINDS)
def test_meta_runs_on_torchs_functions(kind):
    _, ours = pair(kind, 3, 4, 2, bidirectional=True, device="meta")
    y = ours(torch.randn(5, 2, 3, device="meta"))[0]
    assert y.shape == (5, 2, 8)
    assert y.device.type == "meta"


@pytest.mark.cpu_only("torch's LSTM and GRU know no complex numbers on CUDA")
@pytest.mark.parametrize("kind", KINDS)
def test_complex_runs_on_torchs_functions(kind):
    theirs, ours = pair(kind, 3, 4, dtype=torch.complex128)
    x = torch.randn(4, 2, 3, dtype=torch.complex128)
    for a, b in zip(leaves(list(theirs(x)[:1])), leaves(list(ours(x)[:1])), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(theirs(x)[0], ours(x)[0])


def replaced(module):
    module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach() * 0.5)


def parametrized(module):
    parametrize.register_parametrization(module, "weight_hh_l0", Half())


def weight_normed(module):
    parametrizations.weight_norm(module, "weight_ih_l0")


def spectral_normed(module):
    torch.manual_seed(5)
    parametrizations.spectral_norm(module, "weight_hh_l0")


def old_weight_normed(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(module, "weight_hh_l0")


def pruned(module):
    prune.l1_unstructured(module, "weight_hh_l0", amount=0.5)


def dropped(module):
    """Weight drop as it is commonly written: a plain tensor made of another parameter before each call."""
    raw = nn.Parameter(module.weight_hh_l0.detach())
    del module._parameters["weight_hh_l0"]
    module.register_parameter("weight_hh_raw", raw)
    module.register_forward_pre_hook(lambda m, _: setattr(m, "weight_hh_l0", torch.dropout(m.weight_hh_raw, 0.5, True)))


def shared(module):
    module.weight_hh_l1 = module.weight_hh_l0
    module.bias_hh_l0 = module.bias_ih_l0


def frozen(module):
    module.weight_hh_l0.requires_grad_(False)
    module.bias_ih_l1.requires_grad_(False)


def strided(module):
    w = module.weight_ih_l0.detach()
    module.weight_ih_l0 = nn.Parameter(torch.stack([w, w], -1)[..., 0])
    module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach().t().contiguous().t())


def data_written(module):
    module.weight_hh_l0.data = module.weight_hh_l0.data * 0.5
    module.weight_ih_l0.data.mul_(2)


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


CHANGES = [
    replaced,
    parametrized,
    weight_normed,
    spectral_normed,
    old_weight_normed,
    pruned,
    dropped,
    shared,
    frozen,
    strided,
    data_written,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_changed_parameters_reach_the_call(kind, change):
    theirs, ours = pair(kind, 4, 4, 2, dtype=torch.float64)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    agree(theirs, ours, x)  # fills the cache of weights
    change(theirs)
    change(ours)
    agree(theirs, ours, x, seed=7)
    agree(theirs.eval(), ours.eval(), x, seed=8)


def test_a_deleted_parameter_lives_on_in_the_cache():
    theirs, ours = pair("LSTM", 3, 4)
    x = torch.randn(2, 1, 3)
    before = ours(x)[0]
    for module in (theirs, ours):
        del module.weight_hh_l0
        module(x)
    assert torch.equal(ours(x)[0], before)


def test_functional_call_and_no_lasting_hold():
    _, ours = pair("GRU", 3, 4)
    other = {name: torch.randn_like(p) for name, p in ours.named_parameters()}
    x = torch.randn(2, 1, 3)
    twin = copy.deepcopy(ours)
    twin.load_state_dict(other)
    assert torch.equal(torch.func.functional_call(ours, other, (x,))[0], twin(x)[0])
    ours(x)
    alive = [weakref.ref(tensor) for tensor in other.values()]
    del other
    assert not any(ref() is not None for ref in alive)


@pytest.mark.parametrize("kind", KINDS)
def test_layout_of_batch_first_output(kind):
    theirs, ours = pair(kind, 3, 4, batch_first=True)
    for x in (torch.randn(5, 2, 3), torch.randn(5, 3)):
        for a, b in zip(leaves(*theirs(x)), leaves(*ours(x)), strict=True):
            assert a.shape == b.shape
            assert a.stride() == b.stride()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_dropout_masks_are_torchs(kind, p):
    theirs, ours = pair(kind, 3, 8, 3, dropout=p, bidirectional=True, dtype=torch.float64)
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    agree(theirs, ours, x, seed=11)
    agree(theirs.eval(), ours.eval(), x, seed=11)
    states = []
    for module in (theirs.train(), ours.train()):
        torch.manual_seed(0)
        with native_loops():
            module(x)
        states.append(rng_state())
    assert torch.equal(*states)
    ours.dropout = theirs.dropout = 0.6  # options that are set later count too
    agree(theirs, ours, x, seed=12)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_huge_inputs(kind):
    _, ours = pair(kind, 3, 4)
    x = torch.randn(4, 2, 3)
    x[1, 0, 1] = float("nan")
    y, _ = ours(x)
    assert y[1:, 0].isnan().all()
    assert not y[:, 1].isnan().any()
    assert not y[0].isnan().any()
    y, _ = ours(torch.full((4, 2, 3), 1e30))
    assert y.isfinite().all()
    assert (y.abs() <= 1).all()


def test_in_place_change_of_an_output():
    """Where torch allows it: on the CPU after a GRU or an RNN. (oneDNN's backward reads the output, as cuDNN's do.)"""
    for kind in KINDS:
        theirs, ours = pair(kind, 4, 4, dtype=torch.float32)
        gradients = []
        for module in (theirs, ours):
            x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1), device="cpu")
            x = x.to(device()).requires_grad_()
            y, _ = module(x)
            y.mul_(2)
            if kind == "LSTM" or not on_cpu():
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    y.sum().backward()
            else:
                y.sum().backward()
                gradients.append(x.grad)
        if gradients:
            torch.testing.assert_close(*gradients)


@pytest.mark.cpu_only("cuDNN's backwards read the output, ours too")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "LSTM"])
def test_the_output_is_copied_where_it_is_changed_only(kind):
    _, ours = pair(kind, 4, 4)
    y, _ = ours(torch.randn(3, 2, 4))
    kept = next(t for t in y.grad_fn.saved_tensors if t is not None and t.shape == y.shape and torch.equal(t, y))
    assert torch._C._is_cow_tensor(y)
    assert torch._C._is_cow_tensor(kept)
    was = y.detach().clone()
    assert torch._C._is_cow_tensor(y)  # reading copies nothing
    with torch.no_grad():
        y[0] = 0
    assert torch.equal(kept, was)
    assert not torch.equal(y, was)


def test_states_are_not_views_of_the_output():
    for kind in KINDS:
        _, ours = pair(kind, 3, 4)
        with torch.no_grad():
            y, hn = ours(torch.randn(3, 2, 3))
            h = hn[0] if kind == "LSTM" else hn
            kept = h.clone()
            y.zero_()
        assert torch.equal(h, kept)


def test_backward_in_eval_mode():
    theirs, ours = pair("LSTM", 3, 4, 2, dropout=0.5)
    agree(theirs.eval(), ours.eval(), torch.randn(3, 2, 3, requires_grad=True))


@pytest.mark.parametrize("kind", KINDS)
def test_functional_form(kind):
    _, ours = pair(kind, 3, 4, 2, bidirectional=True, batch_first=True, dropout=0.5)
    function = getattr(fused_rnn.functional, {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}[kind])
    x = torch.randn(2, 5, 3)
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5, "training": True}
    torch.manual_seed(0)
    expected = ours(x)
    torch.manual_seed(0)
    got = function(x, None, list(ours.parameters()), **options)
    assert all(torch.equal(a, b) for a, b in zip(leaves(*got), leaves(*expected), strict=True))
    with pytest.raises(ValueError, match="2 to 5 tensors"):
        function(x, None, list(ours.parameters())[:-1], **options)


@pytest.mark.parametrize("kind", CELLS)
def test_functional_cell(kind):
    _, ours = pair(kind, 3, 4)
    function = getattr(
        fused_rnn.functional, {"LSTMCell": "lstm_cell", "GRUCell": "gru_cell"}.get(kind, "rnn_tanh_cell")
    )
    x, h = torch.randn(2, 3), torch.randn(2, 4)
    hx = (h, h) if kind == "LSTMCell" else h
    assert torch.equal(leaves(function(x, hx, *ours.parameters()))[0], leaves(ours(x, hx))[0])
