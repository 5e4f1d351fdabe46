"""Variants of the cells as modules: copies, transforms of programs, what is refused."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from devices import device
from episodes import random_mask
from pairs import distance, flat, largest_of, run
from torch import nn
from torch.func import functional_call
from torch.fx import symbolic_trace
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn

T, B, I, H = 9, 4, 3, 6


MODULES = {
    "hard LSTM": lambda **o: fused_rnn.LSTM(
        I, H, 2, gate_activation="hard_sigmoid", activation="hard_tanh", proj_size=2, **o
    ),
    "peephole LSTM": lambda **o: fused_rnn.LSTM(I, H, 2, peephole=True, bidirectional=False, **o),
    "coupled LSTM": lambda **o: fused_rnn.LSTM(I, H, 2, peephole=True, coupled_gates=True, activation="relu", **o),
    "softsign GRU": lambda **o: fused_rnn.GRU(I, H, 2, activation="softsign", **o),
    "normed LSTM": lambda **o: fused_rnn.LSTM(I, H, 2, layer_norm=True, proj_size=2, **o),
    "normed GRU": lambda **o: fused_rnn.GRU(I, H, 2, layer_norm=True, **o),
    "normed RNN": lambda **o: fused_rnn.RNN(I, H, 2, nonlinearity="hard_tanh", layer_norm=True, **o),
    "GRU of the paper": lambda **o: fused_rnn.GRU(I, H, 2, reset_after=False, **o),
    "hard RNN": lambda **o: fused_rnn.RNN(I, H, 2, nonlinearity="hard_tanh", **o),
}


def state_of(module: nn.Module, *shape: int):
    """A random state."""
    h = torch.randn(*shape, getattr(module, "proj_size", 0) or H)
    return (h, torch.randn(*shape, H)) if module.mode == "LSTM" else h


@pytest.mark.parametrize("name", MODULES)
class TestModules:
    def test_copies(self, name):
        module = MODULES[name](recompute=True)
        x = torch.randn(T, B, I)
        want = run(module, x, None)
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        other = MODULES[name]()
        other.load_state_dict(module.state_dict())
        copies = (
            copy.deepcopy(module),
            pickle.loads(pickle.dumps(module)),
            torch.load(file, weights_only=False),
            other,
        )
        for again in copies:
            torch.testing.assert_close(run(again, x, None), want)
        assert [repr(again) == repr(module) for again in copies] == [True, True, True, False]

    def test_repr_makes_the_module(self, name):
        module = MODULES[name]()
        text = repr(module).replace(", ", ",")
        assert repr(eval(f"fused_rnn.{text}")) == repr(module)

    def test_functional_call(self, name):
        module, other = MODULES[name](), MODULES[name]()
        x = torch.randn(T, B, I)
        got = functional_call(module, dict(other.named_parameters()), x)
        assert all(torch.equal(a, b) for a, b in zip(flat(got), flat(other(x)), strict=True))

    def test_functions(self, name):
        module = MODULES[name]()
        x = torch.randn(T, B, I)
        options = module._variant_arguments()
        function = getattr(fused_rnn.functional, type(module).__name__.lower())
        hx = state_of(module, 2, B)
        got = function(x, hx, list(module.parameters()), num_layers=2, **options)
        assert all(torch.equal(a, b) for a, b in zip(flat(got), flat(module(x, hx)), strict=True))

    @pytest.mark.cpu_only("streams run on the CPU")
    def test_stream(self, name):
        for dtype in (torch.float64, torch.bfloat16):
            module = MODULES[name](dtype=dtype)
            x = torch.randn(T, B, I, dtype=dtype)
            stream = fused_rnn.Stream(module, B)
            got = torch.cat([stream(part) for part in x.split([1, 5, 3])])
            with torch.no_grad():
                y, state = module(x)
            tolerance = 1e-13 if dtype == torch.float64 else 0.02
            torch.testing.assert_close(got, y, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(flat(stream.state), flat(state), rtol=tolerance, atol=tolerance)

    def test_exported(self, name):
        module = MODULES[name]().eval()
        sizes = {0: torch.export.Dim("T", min=2, max=100), 1: torch.export.Dim("B", min=2, max=100)}
        program = torch.export.export(module, (torch.randn(T, B, I),), dynamic_shapes={"input": sizes})
        x = torch.randn(T + 3, B + 1, I)
        torch.testing.assert_close(program.module()(x), module(x))

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    def test_traces(self, name):
        """A trace that may be trained records the reference; a symbolic one, the module."""
        module = MODULES[name](dtype=torch.float64)
        x = torch.randn(T, B, I, dtype=torch.float64)
        traced = torch.jit.trace(module, x, check_trace=False)
        weights = list(module.parameters())
        got, want = (torch.autograd.grad(f(x)[0].sum(), weights) for f in (traced, module))
        torch.testing.assert_close(got, want)
        graph = symbolic_trace(nn.Sequential(module))
        assert torch.equal(graph(x)[0], module(x)[0])

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    def test_traces_of_frozen_weights_are_of_any_length(self, name):
        module = MODULES[name](dtype=torch.float64).requires_grad_(False).eval()
        traced = torch.jit.trace(module, torch.randn(T, B, I, dtype=torch.float64), check_trace=False)
        x = torch.randn(T + 3, B + 1, I, dtype=torch.float64)
        torch.testing.assert_close(traced(x), module(x))

    def test_autocast(self, name):
        module = MODULES[name]()
        x = torch.randn(T, B, I)
        exact = copy.deepcopy(module).double()(x.double())
        with torch.autocast(device().type, torch.bfloat16):
            got = module(x)
        for a, b in zip(flat(got), flat(exact), strict=True):
            assert a.dtype == torch.bfloat16 or module.mode == "GRU"
            assert distance(a, b) <= 0.05 * largest_of([b])

    def test_stays_ours(self, name):
        """What torch.nn does not have is not made one of its modules."""
        model = nn.Sequential(MODULES[name](), fused_rnn.GRU(2, 2))
        report = fused_rnn.convert(model, to="torch")
        assert [len(report.swapped), len(report.left)] == [1, 1]
        assert "is a variant that torch.nn does not have" in report.left[0].reason
        assert [type(module).__module__ for module in model] == ["fused_rnn.modules", "torch.nn.modules.rnn"]


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_compiled(packed):
    module = MODULES["hard LSTM"](dtype=torch.float64)
    torch._dynamo.reset()

    def loss(x, mask):
        y, state = module(x, reset=mask)
        return sum(t.sin().sum() for t in flat((y.data if packed else y, state)))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ([9, 7, 7, 2], [11, 5, 4, 4, 3]):
            x = torch.randn(lengths[0], len(lengths), I, dtype=torch.float64)
            x = pack_padded_sequence(x, lengths) if packed else x
            mask = random_mask(x)
            weights = list(module.parameters())
            got, want = (torch.autograd.grad(f(x, mask), weights) for f in (compiled, loss))
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    torch._dynamo.reset()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("proj_size", [0, 2])
def test_parameters(bias, proj_size):
    """Their names, order and shapes: what variants add or leave out, layer by layer."""
    options = {"bias": bias, "proj_size": proj_size, "bidirectional": True, "num_layers": 2}
    for coupled, gates in ((False, 4), (True, 3)):
        net = fused_rnn.LSTM(I, H, peephole=True, coupled_gates=coupled, **options)
        names, expected = list(net.state_dict()), []
        for own, theirs in zip(net.all_weights, nn.LSTM(I, H, **options).all_weights, strict=True):
            assert [tuple(w.shape) for w in own[:-1]] == [
                (len(w) * gates // 4 if len(w) == 4 * H else len(w), *w.shape[1:]) for w in theirs
            ]
            assert own[-1].shape == ((gates - 1) * H,)
            assert own[-1].abs().max() <= H**-0.5
        for suffix in ("l0", "l0_reverse", "l1", "l1_reverse"):
            expected += [f"weight_ih_{suffix}", f"weight_hh_{suffix}"]
            expected += [f"bias_ih_{suffix}", f"bias_hh_{suffix}"] * bias
            expected += [f"weight_hr_{suffix}"] * bool(proj_size) + [f"weight_ch_{suffix}"]
        assert names == expected == net._flat_weights_names
        assert all(a is b for a, b in zip(net.parameters(), net._flat_weights, strict=True))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_parameters_of_normalisation(kind, bias):
    """Names, order, shapes and values, also of peepholes and projections before them, and drawn anew."""
    options = {"peephole": True, "proj_size": 2} if kind == "LSTM" else {}
    net = getattr(fused_rnn, kind)(I, H, 2, bias=bias, bidirectional=True, layer_norm=True, **options)
    sizes = {"weight_ln_ih": len(net.weight_ih_l0), "weight_ln_hh": len(net.weight_ih_l0)}
    sizes |= {"weight_ln_ch": H, "bias_ln_ch": H} if kind == "LSTM" else {}
    names = list(net.state_dict())
    assert names == net._flat_weights_names
    for suffix in ("l0", "l0_reverse", "l1", "l1_reverse"):
        own = [name for name in names if name.endswith(f"_{suffix}")]
        assert own[-len(sizes) :] == [f"{name}_{suffix}" for name in sizes]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(7)
    net.reset_parameters()
    for name, parameter in net.named_parameters():
        if "_ln_" in name:
            assert parameter.shape == (sizes[name.split("_l0")[0].split("_l1")[0]],)
            assert (parameter == float(name.startswith("weight"))).all()
        else:
            assert parameter.abs().max() <= H**-0.5


def test_rows_without_variance():
    """No input, no state: what is normalised is zero, and gradients are finite."""
    for kind in ("LSTM", "GRU", "RNN"):
        net = getattr(fused_rnn, kind)(I, H, layer_norm=True, bias=False)
        x = torch.zeros(T, B, I, requires_grad=True)
        y, _ = net(x)
        assert (y == 0).all()
        y.sum().backward()
        assert x.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in net.parameters())


def test_initialisation():
    """Gates keep their letters where there are three of them."""
    net = fused_rnn.init.forget_bias_(fused_rnn.LSTM(I, H, coupled_gates=True), 2.0)
    assert (net.bias_ih_l0[:H] == 2).all()
    assert (net.bias_ih_l0[H:] != 2).all()
    fused_rnn.init.chrono_(net, max_steps=100)
    assert (net.bias_ih_l0[:H] > 0).all()
    fused_rnn.init.orthogonal_(net)
    with pytest.raises(TypeError, match="LSTM has no such gate"):
        fused_rnn.init.identity_(net)


def test_plain_modules_are_as_they_were():
    for kind in ("LSTM", "GRU", "RNN"):
        plain, theirs = getattr(fused_rnn, kind)(I, H), getattr(nn, kind)(I, H)
        assert vars(plain).keys() == vars(theirs).keys()
        assert repr(plain) == repr(theirs)
        assert plain.variant is None
    named = fused_rnn.LSTM(I, H, gate_activation="sigmoid", activation="tanh")
    assert named.variant is None
    assert vars(named).keys() == vars(nn.LSTM(I, H)).keys()


@pytest.mark.parametrize(
    ("make_it", "text"),
    [
        (lambda: fused_rnn.LSTM(I, H, gate_activation="hard"), "gate_activation must be one of 'sigmoid', 'hard_sigm"),
        (lambda: fused_rnn.GRU(I, H, activation="own"), "activation must be one of 'sigmoid', .*, got 'own'"),
        (lambda: fused_rnn.RNN(I, H, nonlinearity="hard"), r"Unknown nonlinearity 'hard'. Select from 'sigmoid', "),
        (
            lambda: fused_rnn.functional.rnn(torch.zeros(1, 1, 1), None, [torch.zeros(1, 1)] * 2, nonlinearity="x"),
            "Unk",
        ),
    ],
)
def test_names_that_nothing_has(make_it, text):
    with pytest.raises(ValueError, match=text):
        make_it()


def test_options_that_mean_nothing():
    with pytest.raises(TypeError, match="gate_activation"):
        fused_rnn.RNN(I, H, gate_activation="sigmoid")
    for cell in (fused_rnn.GRU, fused_rnn.RNN):
        for option in ("peephole", "coupled_gates"):  # of the LSTM
            with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
                cell(I, H, **{option: True})
            with pytest.raises(TypeError, match=f"{option} should be of type bool, got: int"):
                fused_rnn.LSTM(I, H, **{option: 1})
    with pytest.raises(TypeError, match="reset_after should be of type bool, got: int"):
        fused_rnn.GRU(I, H, reset_after=0)
    for cell in (fused_rnn.LSTM, fused_rnn.RNN):
        with pytest.raises(TypeError, match="unexpected keyword argument 'reset_after'"):
            cell(I, H, reset_after=False)
    for cell in (fused_rnn.LSTM, fused_rnn.GRU, fused_rnn.RNN):
        with pytest.raises(TypeError, match="layer_norm should be of type bool, got: float"):
            cell(I, H, layer_norm=1.0)
    with pytest.raises(ValueError, match="layer_norm argument is only supported with reset_after=True"):
        fused_rnn.GRU(I, H, layer_norm=True, reset_after=False)
    x, w = torch.zeros(1, 1, 2), [torch.zeros(8, 2)] * 2
    with pytest.raises(
        ValueError, match=r"params must hold 4 to 7 tensors \(.*w_hr, then ln_ih, then ln_hh\) for each"
    ):
        fused_rnn.functional.gru(x, None, w, layer_norm=True)
    with pytest.raises(ValueError, match=r"params must hold 3 to 6 tensors \(.*w_hr, then w_ch\) for each of 1 layers"):
        fused_rnn.functional.lstm(x, None, w, peephole=True)


def test_complex():
    """Where neither we nor torch have kernels, the reference runs, as far as the activation is defined."""
    module = fused_rnn.GRU(I, H, activation="identity", dtype=torch.complex128)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y, _ = module(torch.randn(T, B, I, dtype=torch.complex128))
    assert y.isfinite().all()
