"""Recurrent regularisation as users meet it: generators, transforms of programs, what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from devices import device, rng_state
from pairs import distance, flat, largest_of, run
from test_variant_modules import state_of
from torch import nn
from torch.func import vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import fused_rnn

T, B, I, H = 9, 4, 3, 6
RATES = ["input_dropout", "recurrent_dropout", "weight_dropout", "zoneout_h", "zoneout_c"]
EVERY = {**dict.fromkeys(RATES, 0.3), "dropout": 0.3, "variational_dropout": True, "num_layers": 2}
MODULES = {
    "LSTM": lambda **o: fused_rnn.LSTM(I, H, **EVERY | o),
    "tied LSTM": lambda **o: fused_rnn.LSTM(I, H, **EVERY | {"peephole": True, "proj_size": 2} | o),
    "zoneout LSTM": lambda **o: fused_rnn.LSTM(I, H, zoneout_h=0.1, zoneout_c=0.4, **o),
    "dropout GRU": lambda **o: fused_rnn.GRU(I, H, 2, recurrent_dropout=0.4, gate_activation="softsign", **o),
    "zoneout RNN": lambda **o: fused_rnn.RNN(I, H, 2, nonlinearity="relu", zoneout_h=0.3, weight_dropout=0.2, **o),
}


@pytest.mark.parametrize("name", MODULES)
class TestModules:
    def test_generators(self, name):
        """The same masks from the same state of torch's generator, others from another; none in evaluation."""
        module, x = MODULES[name](), torch.randn(T, B, I)
        first, second, third = (run(module, x, None, seed) for seed in (1, 1, 2))
        assert all(map(torch.equal, first, second))
        assert not torch.equal(first[0], third[0])
        state = rng_state()
        module(x)
        assert not torch.equal(rng_state(), state)
        with torch.random.fork_rng():
            module(x)
        module.eval()
        state = rng_state()
        assert all(map(torch.equal, flat(module(x)), flat(module(x))))
        assert torch.equal(rng_state(), state)

    def test_checkpoint(self, name):
        module, x = MODULES[name](), torch.randn(T, B, I)
        results = []
        for call in (module, lambda x: checkpoint(module, x, use_reentrant=False)):
            torch.manual_seed(3)
            results.append(torch.autograd.grad(call(x)[0].square().sum(), list(module.parameters())))
        assert all(map(torch.equal, *results))

    def test_copies_and_repr(self, name):
        module, x = MODULES[name](), torch.randn(T, B, I)
        want = run(module, x, None, 5)
        for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert all(map(torch.equal, run(again, x, None, 5), want))
        assert repr(eval(f"fused_rnn.{module!r}".replace(", ", ","))) == repr(module)

    def test_functions(self, name):
        module, x = MODULES[name](), torch.randn(T, B, I)
        options = module._variant_arguments() | {"num_layers": module.num_layers, "dropout": module.dropout}
        if module.mode == "RNN_RELU":
            options["nonlinearity"] = "relu"
        function = getattr(fused_rnn.functional, type(module).__name__.lower())
        hx = state_of(module, module.num_layers, B)
        for training in (True, False):
            module.train(training)
            torch.manual_seed(4)
            want = flat(module(x, hx))
            torch.manual_seed(4)
            got = flat(function(x, hx, list(module.parameters()), training=training, **options))
            assert all(map(torch.equal, got, want))

    def test_order_of_rows(self, name):
        """What is drawn for a row goes with its place in the batch given, sorted or not, packed or padded."""
        module, x = MODULES[name](dtype=torch.float64), torch.randn(T, B, I, dtype=torch.float64)
        lengths = [2, 9, 7, 9]
        results = []
        for form in ("padded", "lengths", "packed"):
            torch.manual_seed(3)
            if form == "packed":
                y, state = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
                y = pad_packed_sequence(y)[0]
            else:
                y, state = module(x, **({"lengths": torch.tensor(lengths)} if form == "lengths" else {}))
            results.append([y, *flat(state)])
        torch.testing.assert_close(results[1], results[2])
        for b, length in enumerate(lengths):
            torch.testing.assert_close(results[0][0][:length, b], results[1][0][:length, b])

    @pytest.mark.cpu_only("streams run on the CPU")
    def test_stream(self, name):
        """It has evaluation's expectations."""
        module, x = MODULES[name](dtype=torch.float64), torch.randn(T, B, I, dtype=torch.float64)
        stream = fused_rnn.Stream(module, B)
        got = torch.cat([stream(part) for part in x.split([1, 5, 3])])
        torch.testing.assert_close(got, module.eval()(x)[0], rtol=1e-13, atol=1e-13)

    def test_autocast(self, name):
        module, x = MODULES[name](), torch.randn(T, B, I)
        torch.manual_seed(2)
        exact = module(x)
        torch.manual_seed(2)
        with torch.autocast(device().type, torch.bfloat16):
            got = module(x)
        if not (module.drops and module.drops.weight):  # whose masks depend on the dtype
            for a, b in zip(flat(got), flat(exact), strict=True):
                assert distance(a, b) <= 0.1 * largest_of([b])

    def test_vmap(self, name):
        """Same or different masks for each example, as torch's dropout."""
        module = MODULES[name](dtype=torch.float64)
        x = torch.randn(1, T, B, I, dtype=torch.float64).repeat(3, 1, 1, 1)
        for randomness in ("same", "different"):
            y = vmap(lambda x: module(x)[0], randomness=randomness)(x)
            assert all(torch.allclose(y[0], y[i]) == (randomness == "same") for i in (1, 2))
        with pytest.raises(RuntimeError, match="random"):
            vmap(lambda x: module(x)[0])(x)

    def test_stays_ours(self, name):
        report = fused_rnn.convert(MODULES[name](), to="torch")
        assert "is a variant that torch.nn does not have" in report.left[0].reason


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_compiled(packed):
    """One graph for all sizes, the masks of eager mode from the same seed, and the same again in the backward."""
    rates = dict.fromkeys(RATES[:4], 0.3) | {"clip_grad_norm": 0.7}
    module = fused_rnn.GRU(I, H, 2, dtype=torch.float64, dropout=0.3, **rates)
    torch._dynamo.reset()

    def loss(x):
        y, state = module(x)
        return sum(t.sin().sum() for t in flat((y.data if packed else y, state)))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ([9, 7, 2, 7], [11, 5, 3, 4, 4]):
            x = torch.randn(lengths[0], len(lengths), I, dtype=torch.float64)
            x = pack_padded_sequence(x, lengths, enforce_sorted=False) if packed else x
            weights, results = list(module.parameters()), []
            for f in (compiled, loss):
                torch.manual_seed(7)
                results.append(torch.autograd.grad(f(x), weights))
            torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    torch._dynamo.reset()


def test_zoneout_by_hand():
    """The equations of the paper, with the masks read off: what was kept is the old value to the last bit."""
    module = fused_rnn.LSTM(I, H, zoneout_h=0.5, zoneout_c=0.25, dtype=torch.float64)
    cell = nn.LSTMCell(I, H, dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in module.state_dict().items()})
    x = torch.randn(50, 40, I, dtype=torch.float64)
    for training in (True, False):
        (y, cs), _ = module.train(training)(x, cells=True)
        h = c = torch.zeros(40, H, dtype=torch.float64)
        kept = []
        for t in range(50):
            new = cell(x[t], (h, c))
            for p, old, fresh, now in zip((0.5, 0.25), (h, c), new, (y[t], cs[t]), strict=True):
                if not training:
                    torch.testing.assert_close(now, p * old + (1 - p) * fresh)
                elif t:
                    kept.append((now == old).double().mean())
                    torch.testing.assert_close(now, torch.where(now == old, old, fresh))
            h, c = y[t], cs[t]
        if training:
            assert abs(torch.stack(kept[::2]).mean() - 0.5) < 0.02
            assert abs(torch.stack(kept[1::2]).mean() - 0.25) < 0.02


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_one_mask_for_all_steps(kind):
    """Of the input, between layers, and of h: what is dropped is so at all steps, and has no gradient."""
    options = {"input_dropout": 0.5, "dropout": 0.5, "variational_dropout": True}
    module = getattr(fused_rnn, kind)(I, H, 2, **options)
    x = torch.randn(T, 50, I, requires_grad=True)
    dx = torch.autograd.grad(module(x)[0].square().sum(), x)[0]
    dropped = dx[0] == 0
    assert 0.35 < dropped.double().mean() < 0.65
    assert ((dx == 0) == dropped).all()
    seen = []
    module = getattr(fused_rnn, kind)(I, H, 2, dropout=0.5, variational_dropout=True, bias=False)
    whole = torch.ones(T, 50, H)
    with torch.no_grad():
        module.weight_ih_l1.zero_()[:, 0] = 1  # the second layer sees one unit
        for unit in module(x)[0].unbind(1):
            seen.append(bool((unit == 0).all()))
            assert seen[-1] or (unit != 0).any()
    assert len(whole) == T
    assert 0.25 < sum(seen) / 50 < 0.75


def test_recurrent_dropout_by_hand():
    """A GRU's z h is not dropped, and the mask is scaled to keep the mean."""
    module = fused_rnn.GRU(I, H, recurrent_dropout=0.5, dtype=torch.float64)
    with torch.no_grad():
        module.weight_hh_l0.copy_(torch.eye(H).repeat(3, 1))
    x = torch.zeros(2, 200, I, dtype=torch.float64)
    hx = torch.ones(1, 200, H, dtype=torch.float64)
    y = module(x, hx)[0]
    options = []
    for scale in (0.0, 2.0):
        plain = fused_rnn.GRU(I, H, dtype=torch.float64)
        plain.load_state_dict(module.state_dict())
        with torch.no_grad():
            plain.weight_hh_l0.mul_(scale)
        options.append(plain(x, hx)[0])
    dropped, kept = ((y - option).abs().amax(0) < 1e-12 for option in options)
    assert (dropped ^ kept).all()
    assert 0.4 < dropped.double().mean() < 0.6


def test_weight_dropout():
    """One set of weights for all rows and steps, scaled; gradients come to the others alone."""
    module = fused_rnn.RNN(I, H, weight_dropout=0.5)
    x = torch.randn(T, B, I)
    grads = torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))
    assert [bool((g == 0).any()) for g in grads] == [False, True, False, False]
    module.eval()
    plain = fused_rnn.RNN(I, H)
    plain.load_state_dict(module.state_dict())
    assert all(map(torch.equal, flat(module(x)), flat(plain(x))))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_no_rate_is_the_plain_path(kind):
    zero = {name: 0.0 for name in RATES if kind == "LSTM" or name != "zoneout_c"}
    plain, module = getattr(fused_rnn, kind)(I, H), getattr(fused_rnn, kind)(I, H, variational_dropout=False, **zero)
    assert vars(plain).keys() == vars(module).keys()
    assert repr(plain) == repr(module)
    dropping = getattr(fused_rnn, kind)(I, H, recurrent_dropout=0.5, input_dropout=0.5, weight_dropout=0.5).eval()
    dropping.load_state_dict(plain.state_dict())
    x = torch.randn(T, B, I)
    for a, b in zip(run(dropping, x, None), run(plain, x, None), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", RATES)
def test_rates_that_are_none(name):
    for value in (-0.1, 1.1, float("nan"), "0.5", True):
        with pytest.raises(ValueError, match=rf"{name} should be a number in range \[0, 1\]"):
            fused_rnn.LSTM(I, H, **{name: value})


def test_options_that_mean_nothing():
    with pytest.raises(TypeError, match="variational_dropout should be of type bool, got: float"):
        fused_rnn.GRU(I, H, variational_dropout=0.5)
    params = list(fused_rnn.GRU(I, H).parameters())
    for call in (
        lambda: fused_rnn.GRU(I, H, zoneout_c=0.1),
        lambda: fused_rnn.RNN(I, H, zoneout_c=0.1),
        lambda: fused_rnn.functional.gru(torch.zeros(1, 1, I), None, params, zoneout_c=0.1),
    ):
        with pytest.raises(ValueError, match="zoneout_c argument is only supported for LSTM, not RNN or GRU"):
            call()
    with pytest.raises(TypeError, match="unexpected keyword argument 'zoneout'"):
        fused_rnn.functional.gru(torch.zeros(1, 1, I), None, params, zoneout=0.1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'zoneout'"):
        fused_rnn.GRU(I, H, zoneout=0.1)


def test_complex():
    """Where nobody has kernels, the reference runs."""
    module = fused_rnn.GRU(I, H, recurrent_dropout=0.3, zoneout_h=0.2, input_dropout=0.1, dtype=torch.complex128)
    y, _ = module(torch.randn(T, B, I, dtype=torch.complex128))
    assert y.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_weight_dropout_of_complex_numbers(dtype):
    """Of which torch's own dropout knows nothing: elements go whole, the others keep their mean."""
    torch.manual_seed(0)
    module = fused_rnn.RNN(I, H, weight_dropout=0.5, dtype=dtype)
    module(torch.randn(T, B, I, dtype=dtype))[0].abs().sum().backward()
    kept = module.weight_hh_l0.grad != 0
    assert 0 < kept.sum() < kept.numel()
