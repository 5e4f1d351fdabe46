"""What ``fused_rnn.diagnostics`` tells of gradients, beside hooks."""

import copy
import math
import pickle

import pytest
import torch
from devices import device, on_cpu
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fused_rnn
from fused_rnn import network, ops, reference
from fused_rnn.diagnostics import (
    gradient_flow,
    table,
    verdict,
    write_scalars,
)

F64 = torch.float64
T, B, I, H = 9, 4, 3, 6

MODULES = {
    "LSTM": lambda **kw: fused_rnn.LSTM(I, H, 2, dropout=0.3, **kw),
    "projected": lambda **kw: fused_rnn.LSTM(I, H, 2, proj_size=4, **kw),
    "variant": lambda **kw: fused_rnn.LSTM(I, H, 2, peephole=True, coupled_gates=True, **kw),
    "GRU": lambda **kw: fused_rnn.GRU(I, H, 2, recompute=True, **kw),
    "RNN": lambda **kw: fused_rnn.RNN(I, H, 2, nonlinearity="relu", **kw),
    "regular": lambda **kw: fused_rnn.LSTM(
        I, H, 2, zoneout_h=0.3, zoneout_c=0.2, recurrent_dropout=0.3, clip_grad_value=0.3, clip_grad_norm=0.5, **kw
    ),
    "regular GRU": lambda **kw: fused_rnn.GRU(I, H, 2, zoneout_h=0.3, layer_norm=True, clip_grad_norm=0.4, **kw),
    "regular RNN": lambda **kw: fused_rnn.RNN(I, H, 2, zoneout_h=0.3, layer_norm=True, clip_grad_value=0.1, **kw),
}
RESET = (torch.rand(T, B, generator=torch.Generator().manual_seed(1), device="cpu") < 0.2).to(device())
LENGTHS = [5, 9, 1, 7]
CALLS = {
    "padded": {},
    "reset": {"reset": RESET},
    "reset to initial": {"reset": RESET, "reset_to": "initial"},
    "lengths": {"lengths": torch.tensor(LENGTHS)},
    "packed": {},
}


def state_of(module, dtype=F64):
    slots = module.num_layers * (2 if module.bidirectional else 1)
    h = torch.randn(slots, B, module.proj_size or H, dtype=dtype)
    return (h, torch.randn(slots, B, H, dtype=dtype)) if isinstance(module, fused_rnn.LSTM) else h


def look(module, x, hx, form, **options):
    with gradient_flow(module) as flow:
        torch.manual_seed(3)  # of the dropout
        x = pack_padded_sequence(x, LENGTHS, enforce_sorted=False) if form == "packed" else x
        y, state = module(x, hx, **options)
        every = y.data if form == "packed" else y
        states = state if isinstance(state, tuple) else (state,)
        (sum(s.square().sum() for s in states) + (every * every.detach().cos()).sum()).backward()
    return flow.layers


NUMBERS = ("h", "c", "kept", "recurrent", "share_kept", "transmission")


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("form", CALLS)
@pytest.mark.parametrize("kind", MODULES)
def test_beside_hooks(kind, form, bidirectional, monkeypatch):
    """The kernels' numbers and gates are those of hooks on the reference."""
    module = MODULES[kind](bidirectional=bidirectional).to(F64)
    x, hx = torch.randn(T, B, I, dtype=F64), state_of(module)
    ours = look(module, x, hx, form, **CALLS[form])
    gradients = [p.grad for p in module.parameters()]
    module.zero_grad()
    monkeypatch.setattr(network, "has_kernels", lambda *_: False)
    hooked = look(module, x, hx, form, **CALLS[form])
    torch.testing.assert_close([p.grad for p in module.parameters()], gradients, rtol=1e-9, atol=1e-11)
    assert [(f.layer, f.reverse) for f in ours] == [(k, r) for k in (0, 1) for r in (False, True)[: 1 + bidirectional]]
    for a, b in zip(ours, hooked, strict=True):
        assert torch.equal(a.rows, b.rows)
        assert (a.c is None) == (a.cell != "LSTM")
        for name in NUMBERS:
            if (want := getattr(b, name)) is not None:
                torch.testing.assert_close(getattr(a, name), want, rtol=1e-10, atol=1e-12, equal_nan=True)
        torch.testing.assert_close(a.rate, b.rate)
        torch.testing.assert_close(a.gates, b.gates)
        assert a.clipping.keys() == b.clipping.keys()
        for state, cut in a.clipping.items():
            assert torch.equal(cut.rows, b.clipping[state].rows)
            torch.testing.assert_close(cut.factor, b.clipping[state].factor, rtol=1e-10, atol=0, equal_nan=True)
            assert (cut.rows > 0).any()


@pytest.mark.parametrize("kind", MODULES)
def test_the_kernels_tell(kind, monkeypatch):
    """Of each layer the backward op, which is asked to; no step of the reference runs."""
    told = []
    backward = ops.layer_backward
    monkeypatch.setattr(ops, "layer_backward", lambda *args: told.append(args[-1]) or backward(*args))
    monkeypatch.setattr(reference, "layer", None)
    module = MODULES[kind](bidirectional=True)
    for flow in look(module, torch.randn(T, B, I), state_of(module, torch.float32), "padded"):
        assert (flow.h > 0).all()
    assert told == [True, True]


@pytest.mark.parametrize("kind", MODULES)
def test_recording_changes_nothing(kind):
    module = MODULES[kind](bidirectional=True)
    x = torch.randn(T, B, I, requires_grad=True)

    def run():
        torch.manual_seed(0)
        y, _ = module(x)
        return y, torch.autograd.grad(y.square().sum(), [x, *module.parameters()])

    y, plain = run()
    for gates in (False, True):
        with gradient_flow(module, gates=gates) as flow:
            again, recorded = run()
        assert torch.equal(again, y)
        exact = not (gates and module.recompute)
        torch.testing.assert_close(recorded, plain, **({"rtol": 0, "atol": 0} if exact else {}))
        assert flow.layers[0].has_gates == gates
    assert module.recorder is None
    assert "recorder" not in vars(module)


def test_numbers_by_hand():
    """A linear RNN of one unit: each step multiplies by w."""
    w = 0.5
    rnn = fused_rnn.RNN(1, 1, nonlinearity="identity", bias=False).to(F64)
    with torch.no_grad():
        rnn.weight_hh_l0.fill_(w)
    with gradient_flow(rnn) as flow:
        rnn(torch.randn(6, 2, 1, dtype=F64))[0][-1].sum().backward()
    (layer,) = flow.layers
    torch.testing.assert_close(layer.h, 2**0.5 * w ** torch.arange(5, -1, -1, dtype=F64, device="cpu"))
    torch.testing.assert_close(layer.recurrent[:-1], layer.h[:-1])
    assert layer.recurrent[-1].isnan()
    assert not layer.kept[:-1].any()
    assert layer.rate == pytest.approx(w)
    said = verdict(layer)
    assert said.kind == "healthy"
    assert said.left == pytest.approx(w**5)
    assert layer.steps == 6


def test_where_a_clip_acted():
    """A linear RNN of one unit that doubles its gradient, bounded to 5 on the way from step to step."""
    rnn = fused_rnn.RNN(1, 1, nonlinearity="identity", bias=False, clip_grad_value=5.0).to(F64)
    with torch.no_grad():
        rnn.weight_hh_l0.fill_(2.0)
    with gradient_flow(rnn) as flow:
        y, _ = rnn(torch.randn(6, 2, 1, dtype=F64))
        (y[-1] * torch.tensor([[1.0], [0.25]])).sum().backward()  # rows of 1, 2, 4, 5, 5, 5 and 1/4, 1/2, 1, 2, 4, 5
    (layer,) = flow.layers
    (cut,) = layer.clipping.values()
    assert cut.rows.tolist() == [2, 1, 1, 0, 0, 0]
    sent = [(10, 8), (10, 4), (8, 2)]
    came = [(5, 5), (5, 4), (5, 2)]
    factors = [math.hypot(*c) / math.hypot(*s) for c, s in zip(came, sent)]
    want = torch.tensor([*factors, 1, 1, math.nan], dtype=F64, device="cpu")
    torch.testing.assert_close(cut.factor, want, equal_nan=True)
    assert float(layer.recurrent[0]) == pytest.approx(math.hypot(10, 8))
    said = verdict(layer)
    assert said.clipped == 3
    assert str(said).endswith("; clipped at 3 steps")
    assert layer.recurrent[0] > layer.h[0]
    lines = table(layer).splitlines()
    assert "h clipped to" in lines[0]
    assert f"{factors[0]:.1%}" in lines[1]
    seen = {}
    write_scalars(
        type("Writer", (), {"add_scalar": lambda _, name, value, step: seen.update({name: value})})(), flow, 0
    )
    assert seen["gradient_flow/layer_0/clipped/h"] == pytest.approx(4 / 12)
    assert seen["gradient_flow/layer_0/clipped_to/h"] == pytest.approx((sum(factors) + 2) / 5)


def test_rate_is_the_same_with_a_loss_at_every_step():
    """What each output adds does not count."""
    rnn = fused_rnn.init.orthogonal_(fused_rnn.RNN(1, 8, nonlinearity="identity"), gain=0.9).to(F64)
    for reverse in (False, True):
        x = torch.randn(30, 2, 1, dtype=F64)
        for chosen in (slice(None), slice(-1, None)):
            with gradient_flow(rnn) as flow:
                rnn(x)[0][chosen].sum().backward()
            assert flow.layers[0].rate == pytest.approx(0.9)
        if not reverse:
            weights = rnn.state_dict()
            rnn = fused_rnn.RNN(1, 8, nonlinearity="identity", bidirectional=True).to(F64)
            rnn.load_state_dict({name + suffix: w for name, w in weights.items() for suffix in ("", "_reverse")})
            with gradient_flow(rnn) as flow:
                rnn(x)[0].sum().backward()
            assert [layer.rate for layer in flow.layers] == pytest.approx([0.9, 0.9])


def test_saturation_and_gates():
    lstm = fused_rnn.LSTM(I, H)
    with torch.no_grad():
        for w in lstm.parameters():
            w.zero_()
        lstm.bias_ih_l0[:H] = -9.0  # i
        lstm.bias_ih_l0[H : H + 3] = 9.0  # half of f
        lstm.bias_ih_l0[2 * H : 3 * H] = -4.0  # g
    with gradient_flow(lstm) as flow:
        lstm(torch.randn(T, B, I))[0].sum().backward()
    (layer,) = flow.layers
    shares = {name: (float(s.low.mean()), float(s.high.mean())) for name, s in layer.saturation.items()}
    assert shares == {"i": (1, 0), "f": (0, 0.5), "g": (1, 0), "o": (0, 0)}
    assert layer.gates["o"].shape == (T, H)
    torch.testing.assert_close(layer.gates["f"][:, 3:], torch.full((T, 3), 0.5, device="cpu"))


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}, {"zoneout_h": 0.5}], ids=str)
def test_what_an_rnn_shows_is_h(options):
    rnn = fused_rnn.RNN(I, H, bidirectional=True, **options)
    with gradient_flow(rnn) as flow:
        y, _ = rnn(torch.randn(T, B, I))
        y.sum().backward()
    for layer, part in zip(flow.layers, y.detach().chunk(2, -1), strict=True):
        torch.testing.assert_close(layer.gates["h"], part.mean(1).cpu())


def test_models_and_several_calls():
    model = nn.ModuleDict({"encoder": fused_rnn.GRU(I, H), "decoder": fused_rnn.LSTM(H, H), "head": nn.Linear(H, 1)})
    with gradient_flow(model) as flow:
        for _ in range(2):
            y, _ = model["encoder"](torch.randn(T, B, I))
            y, _ = model["decoder"](y)
            model["head"](y).sum().backward()
    assert [call.name for call in flow.calls] == ["encoder", "decoder"] * 2
    assert [call.layers[0].cell for call in flow.calls] == ["GRU", "LSTM"] * 2
    with pytest.raises(RuntimeError, match=r"saw 4 calls: read \.calls"):
        flow.layers
    seen = {}

    class Writer:
        def add_scalar(self, name, value, step):
            assert step == 7
            seen[name] = value

    write_scalars(Writer(), flow, 7)
    assert seen["gradient_flow/encoder/call_0/layer_0/rate"] == flow.calls[0].layers[0].rate
    assert seen["gradient_flow/decoder/call_3/layer_0/last"] == flow.calls[3].layers[0].h[-1]
    assert 0 <= seen["gradient_flow/decoder/call_1/layer_0/share_past_gates"] <= 1
    assert "gradient_flow/decoder/call_1/layer_0/saturated/f" in seen


def test_double_backward_is_told_too():
    gru = fused_rnn.GRU(I, H).to(F64)
    x = torch.randn(T, B, I, dtype=F64, requires_grad=True)
    with gradient_flow(gru) as flow:
        (gx,) = torch.autograd.grad(gru(x)[0][-1].square().sum(), x, create_graph=True)
    gx.square().sum().backward(inputs=[gru.weight_hh_l0])
    assert gru.weight_hh_l0.grad.any()
    with gradient_flow(gru) as flow:
        torch.autograd.grad(gru(x)[0][-1].square().sum(), x, create_graph=True)
    with gradient_flow(gru) as plain:
        gru(x)[0][-1].square().sum().backward()
    torch.testing.assert_close(flow.layers[0].h, plain.layers[0].h)


def test_other_dtypes():
    x = torch.randn(T, B, I)
    lstm = fused_rnn.LSTM(I, H)
    with gradient_flow(lstm) as flow, torch.autocast(device().type, torch.bfloat16):
        lstm(x)[0].sum().backward()
    with gradient_flow(lstm) as plain:
        lstm(x)[0].sum().backward()
    torch.testing.assert_close(flow.layers[0].h, plain.layers[0].h, rtol=0.05, atol=0)
    gru = fused_rnn.GRU(I, H, dtype=torch.complex128)  # on the reference
    with gradient_flow(gru) as flow:
        gru(x.to(torch.complex128))[0].abs().sum().backward()
    assert flow.layers[0].h.isfinite().all()
    with pytest.raises(RuntimeError, match="gates were not recorded"):
        flow.layers[0].gates


def test_a_copy_is_not_recorded():
    rnn, x = fused_rnn.RNN(I, H), torch.randn(T, B, I)
    with gradient_flow(rnn) as flow:
        for another in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
            another(x)
        rnn(x)
    assert len(flow.calls) == 1
    assert another.recorder is None


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_batch_of_no_rows(kind):
    rnn = getattr(fused_rnn, kind)(I, H)
    with gradient_flow(rnn) as flow:
        rnn(torch.zeros(T, 0, I))[0].sum().backward()
    assert torch.equal(flow.layers[0].h, torch.zeros(T, dtype=F64, device="cpu"))


class TestErrors:
    def test_nothing_to_record(self):
        with pytest.raises(ValueError, match="found no fused_rnn"), gradient_flow(nn.LSTM(I, H)):
            pass

    def test_twice(self):
        rnn = fused_rnn.RNN(I, H)
        with gradient_flow(rnn), pytest.raises(RuntimeError, match="already"), gradient_flow(rnn):
            pass
        assert rnn.recorder is None

    def test_no_backward(self):
        rnn = fused_rnn.RNN(I, H)
        with gradient_flow(rnn) as flow:
            with pytest.raises(RuntimeError, match="saw 0 calls"):
                flow.layers
            rnn(torch.randn(T, B, I))
        with pytest.raises(RuntimeError, match="no backward came"):
            flow.layers

    def test_transforms(self):
        rnn = fused_rnn.RNN(I, H)
        with gradient_flow(rnn), pytest.raises(RuntimeError, match="records ordinary calls"):
            torch.func.grad(lambda x: rnn(x)[0].sum())(torch.randn(T, B, I))

    def test_lengths_that_cannot_be_read(self):
        class Opaque(torch.Tensor):
            pass

        rnn, lengths = fused_rnn.RNN(I, H), torch.tensor(LENGTHS).as_subclass(Opaque)
        with gradient_flow(rnn) as flow, pytest.raises(RuntimeError, match="takes lengths in eager mode only"):
            rnn(torch.randn(T, B, I), lengths=lengths)
        assert not flow.calls

    def test_batched_gradients(self):
        rnn = fused_rnn.RNN(I, H)
        with gradient_flow(rnn):
            y = rnn(torch.randn(T, B, I))[0]
            with pytest.raises(RuntimeError, match="one backward at a time"):
                torch.autograd.grad(y, rnn.weight_hh_l0, torch.ones(2, *y.shape), is_grads_batched=True)


# ---- where nothing comes -----------------------------------------------------------------------------


def test_below_frozen_layers_nothing_is_told():
    net = fused_rnn.LSTM(I, H, 2)
    for name, weight in net.named_parameters():
        weight.requires_grad_("l1" in name)
    with gradient_flow(net) as flow:
        net(torch.randn(T, B, I))[0].sum().backward()
    below, above = flow.layers
    assert above.reached
    assert above.h.all()
    assert not below.reached
    with pytest.raises(RuntimeError, match="no backward came to this layer"):
        below.h
    names = []

    class Writer:
        def add_scalar(self, name, value, step):
            names.append(name)

    write_scalars(Writer(), flow, 0)
    assert {name.split("/")[1] for name in names} == {"layer_1"}


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_call_that_is_made_again(reentrant):
    """A checkpoint's, of which one has a backward."""
    net, x = fused_rnn.GRU(I, H), torch.randn(T, B, I, requires_grad=True)
    with gradient_flow(net) as flow:
        checkpoint(lambda x: net(x)[0], x, use_reentrant=reentrant).sum().backward()
    with gradient_flow(net) as plain:
        net(x)[0].sum().backward()
    assert sorted(call.reached for call in flow.calls) == [False, True]
    torch.testing.assert_close(flow.layers[0].h, plain.layers[0].h)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_output_changed_in_place(kind):
    """After the forward, and after the backward: neither reaches what was recorded."""
    module = getattr(fused_rnn, kind)(I, H).double()
    x = torch.randn(T, B, I, dtype=F64)
    want = look(module, x, None, "padded")[0].gates
    with gradient_flow(module) as flow:
        y = module(x)[0]
        changed = y if kind == "LSTM" or not on_cpu() else y.mul_(2)  # as torch's own, of which others refuse it
        changed.sum().backward()
        with torch.no_grad():
            y.zero_()
    got = flow.layers[0].gates
    assert got.keys() == want.keys()
    for name in want:
        assert torch.equal(got[name], want[name])
