"""What ``fused_rnn.diagnostics`` tells of recurrences without a loss, beside exact Jacobians and exact spectra."""

import math

import pytest
import torch
from devices import device
from torch import nn

import fused_rnn
from fused_rnn.diagnostics import gradient_flow, jacobian_norms, recurrent_spectra

F64 = torch.float64
T, B, I, H = 9, 4, 3, 6
MODULES = {
    "LSTM": lambda: fused_rnn.LSTM(I, H, 2, dropout=0.3),
    "projected": lambda: fused_rnn.LSTM(I, H, 2, proj_size=4),
    "GRU": lambda: fused_rnn.GRU(I, H, 2, batch_first=True, recompute=True),
    "RNN": lambda: fused_rnn.RNN(I, H, 2, nonlinearity="relu"),
}


def exact(module, x, t, hx, whole):
    state = module(x[: t + 1], hx)[1]
    states = state if isinstance(state, tuple) else (state,)

    def run(*moved):
        given = (*moved, *states[len(moved) :])
        end = module(x[t + 1 :], given if len(given) == 2 else given[0])[1]
        return (end if isinstance(end, tuple) else (end,))[: len(moved)]

    moved = tuple(s.detach() for s in states[: 2 if whole else 1])
    parts = torch.autograd.functional.jacobian(run, moved)
    rows = [torch.cat([j.flatten(s.dim()).flatten(0, s.dim() - 1) for j in row], 1) for s, row in zip(moved, parts)]
    return torch.linalg.matrix_norm(torch.cat(rows), 2)


@pytest.mark.parametrize(
    ("kind", "of"), [("LSTM", "h"), ("LSTM", "state"), ("projected", "state"), ("GRU", "h"), ("RNN", "state")]
)
def test_jacobians(kind, of):
    module = MODULES[kind]().to(F64)
    x, h = torch.randn(6, I, dtype=F64), torch.randn(2, module.proj_size or H, dtype=F64)
    hx = (h, torch.randn(2, H, dtype=F64)) if module.mode == "LSTM" else h
    steps = [0, 2, 4]
    got = jacobian_norms(module, x, steps, hx, of, iterations=60)
    assert module.training
    module.eval()
    want = torch.stack([exact(module, x, t, hx, of == "state") for t in steps])
    assert (got <= want * (1 + 1e-9)).all()  # from below
    torch.testing.assert_close(got, want, rtol=0.05, atol=0)


def test_jacobians_refuse():
    rnn, x = fused_rnn.RNN(I, H), torch.randn(T, I)
    with pytest.raises(ValueError, match="bidirectional"):
        jacobian_norms(fused_rnn.RNN(I, H, bidirectional=True), x, [0])
    with pytest.raises(ValueError, match="steps must be from 0 to 7"):
        jacobian_norms(rnn, x, [8])
    with pytest.raises(ValueError, match="of must be"):
        jacobian_norms(rnn, x, [0], of="c")
    with pytest.raises(ValueError, match="one sequence"):
        jacobian_norms(rnn, torch.randn(T, B, I), [0])
    with gradient_flow(rnn), pytest.raises(RuntimeError, match="looks at this module"):
        jacobian_norms(rnn, x, [0])
    with pytest.raises(TypeError, match=r"takes fused_rnn\.LSTM, GRU and RNN"):
        jacobian_norms(nn.GRU(I, H), x, [0])
    assert rnn.recorder is None


@pytest.mark.parametrize("clip", [{"clip_grad_value": 1e-3}, {"clip_grad_norm": 1e-3}])
def test_jacobians_know_no_clips(clip):
    clipped, plain = fused_rnn.RNN(I, H, 2, **clip).to(F64), fused_rnn.RNN(I, H, 2).to(F64)
    fused_rnn.init.orthogonal_(clipped, 1.5)
    plain.load_state_dict(clipped.state_dict())
    x, generators = torch.randn(T, I, dtype=F64), [torch.Generator(device()).manual_seed(0) for _ in range(2)]
    norms = [jacobian_norms(m, x, [0, 3], generator=g) for m, g in zip((clipped, plain), generators, strict=True)]
    torch.testing.assert_close(*norms)


def test_spectra():
    gru = fused_rnn.init.orthogonal_(fused_rnn.GRU(I, H, 2, bidirectional=True), gain=1.5)
    spectra = recurrent_spectra(gru)
    assert [(s.layer, s.reverse, s.gate) for s in spectra[:4]] == [
        (0, False, "r"), (0, False, "z"), (0, False, "n"), (0, True, "r")
    ]  # fmt: skip
    assert len(spectra) == 12
    assert all(s.norm == pytest.approx(1.5) and s.radius == pytest.approx(1.5) for s in spectra)
    projected = recurrent_spectra(fused_rnn.LSTM(I, H, proj_size=2, coupled_gates=True))
    assert [s.gate for s in projected] == ["f", "g", "o"]
    assert all(0 < s.radius <= s.norm for s in projected)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_spectra_of_what_is_not_finite(value):
    """LAPACKs crash on it."""
    gru = fused_rnn.GRU(I, 8)
    with torch.no_grad():
        gru.weight_hh_l0[3, 2] = value
    r, z, n = recurrent_spectra(gru)
    assert math.isnan(r.radius)
    assert math.isnan(r.norm)
    assert z.radius > 0
    assert n.radius > 0
    with pytest.raises(TypeError, match="expected an LSTM, GRU or RNN module, got GRUCell"):
        recurrent_spectra(fused_rnn.GRUCell(I, H))


def test_looking_moves_nothing_on():
    """The old spectral norm iterates at each forward of training."""
    module = torch.nn.utils.spectral_norm(fused_rnn.LSTM(I, H), "weight_hh_l0")
    before = module.weight_hh_l0_u.clone()
    spectra = recurrent_spectra(module)
    assert torch.equal(module.weight_hh_l0_u, before)
    assert spectra == recurrent_spectra(module.eval())


def test_modes_are_put_back():
    """Those of parametrizations too, some of which advance in training."""
    rnn = nn.utils.parametrizations.spectral_norm(fused_rnn.RNN(I, H), "weight_hh_l0")
    rnn.parametrizations.eval()
    before = {name: part.training for name, part in rnn.named_modules()}
    assert len(set(before.values())) == 2
    jacobian_norms(rnn, torch.randn(T, I), [0])
    assert {name: part.training for name, part in rnn.named_modules()} == before
