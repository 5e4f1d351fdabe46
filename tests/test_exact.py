"""Linear cells on small integers: exact, so the same bits as in numpy, on every device and instruction set and in every
dtype."""

import functools
import itertools

import numpy as np
import pytest
import torch
from devices import device, isas
from loop_cases import LINEAR, Case, assert_same, make, run

from fused_rnn import _C
from fused_rnn.reference import Cell


@pytest.fixture(autouse=True)
def _best_isa_again():
    yield
    _C.force_isa("")


def by_numpy(problem):
    """Forward and backward of a linear cell step by step from the definition; and the largest value met.

    In doubles, which are as good as integers while they stay below 2^53.
    """
    p = problem
    integer = lambda t: None if t is None else t.double().cpu().numpy()  # noqa: E731
    x, h0, c0, dy, dhn, dcn = map(integer, (p.x, p.h0, p.c0, p.dy, p.dhn, p.dcn))
    weights = [integer(w) for w in p.weights]
    D, per = len(h0), len(weights) // len(h0)
    R, largest = h0.shape[2], 0
    sizes = [x.shape[1]] * x.shape[0] if p.batch_sizes is None else p.batch_sizes.tolist()
    starts = np.cumsum([0, *sizes])
    rows = x.reshape(-1, x.shape[-1])
    y = np.zeros((len(rows), D * R))
    dys = dy.reshape(y.shape)
    hn, cn, dh0, dc0 = h0.copy(), None if c0 is None else c0.copy(), dhn.copy(), None if dcn is None else dcn.copy()
    dx, dw = np.zeros_like(rows), [np.zeros_like(w) for w in weights]
    for d in range(D):
        w_ih, w_hh, b_ih, b_hh, *rest = weights[d * per : (d + 1) * per]
        g_ih, g_hh, gb_ih, gb_hh, *g_rest = dw[d * per : (d + 1) * per]
        kept = []
        order = range(len(sizes))[:: -1 if d else 1]
        for t in order:
            b, at = sizes[t], slice(starts[t], starts[t + 1])
            h, gx = hn[d, :b].copy(), rows[at] @ w_ih.T + b_ih
            gh = h @ w_hh.T + b_hh
            largest = np.maximum(largest, np.abs(gx).max() + np.abs(gh).max())
            if p.cell.is_lstm:
                c = cn[d, :b].copy()
                gates = np.split(gx + gh, 4, 1)
                i, f, g, o = gates
                cn[d, :b] = f * c + i * g
                full = o * cn[d, :b]
                hn[d, :b] = full @ rest[0].T if rest else full
                kept.append((t, h, gates, c, cn[d, :b].copy(), full))
            elif p.cell.is_gru:
                (xr, xz, xn), (hr, hz, hh) = np.split(gx, 3, 1), np.split(gh, 3, 1)
                r, z = xr + hr, xz + hz
                n = xn + r * hh
                hn[d, :b] = (1 - z) * n + z * h
                kept.append((t, h, (r, z, n, hh)))
            else:
                hn[d, :b] = gx + gh
                kept.append((t, h))
            y[at, d * R : (d + 1) * R] = hn[d, :b]
        for t, h, *inner in reversed(kept):
            b, at = sizes[t], slice(starts[t], starts[t + 1])
            dh = dh0[d, :b] + dys[at, d * R : (d + 1) * R]
            pass_by = 0
            if p.cell.is_lstm:
                (i, f, g, o), c, c_new, full = inner
                if rest:
                    g_rest[0] += dh.T @ full
                    dh = dh @ rest[0]
                dc = dc0[d, :b] + dh * o
                dgx = dgh = np.concatenate([dc * g, dc * c, dc * i, dh * c_new], 1)
                dc0[d, :b] = dc * f
            elif p.cell.is_gru:
                ((r, z, n, hh),) = inner
                dn, dz = dh * (1 - z), dh * (h - n)
                dgx = np.concatenate([dn * hh, dz, dn], 1)
                dgh = np.concatenate([dn * hh, dz, dn * r], 1)
                pass_by = dh * z
            else:
                dgx = dgh = dh
            dh0[d, :b] = dgh @ w_hh + pass_by
            largest = np.maximum(largest, max(np.abs(dgx).max(), np.abs(dgh).max()))
            dx[at] += dgx @ w_ih
            g_ih += dgx.T @ rows[at]
            g_hh += dgh.T @ h
            gb_ih += dgx.sum(0)
            gb_hh += dgh.sum(0)
    none = np.zeros(0)
    out = {"y": y.reshape(dy.shape), "hn": hn, "cn": none if cn is None else cn}
    out |= {"dx": dx.reshape(x.shape), "dh0": dh0, "dc0": none if dc0 is None else dc0}
    out |= {f"dweights[{i}]": g for i, g in enumerate(dw)}
    return out, float(np.max([largest, *(np.abs(v).max() for v in out.values() if v.size)]))


EXACT = [
    Case(cell, T=T, B=B, I=4, H=H, P=P, D=2, packed=packed)
    for cell in LINEAR
    for T, B, H in ((3, 2, 9), (3, 6, 17), (6, 5, 33), (7, 13, 20))
    for P in ((0, 5) if cell == Cell.LSTM_LINEAR else (0,))
    for packed in (False, True)
]
# Integers up to here have all their neighbours.
WHOLE = {torch.float64: 2**53, torch.float32: 2**24, torch.float16: 2**11, torch.bfloat16: 2**8}


def integers(generator, *shape, scale=1.0, fan_in):
    """-1, 0 and 1; in a row of a weight matrix `fan_in` that are not 0 on the average, or linear gates explode."""
    p = fan_in / shape[-1] / 2 if len(shape) == 2 and scale < 1.0 else min(fan_in, 1.0) / 5
    draw = torch.rand(*shape, generator=generator, dtype=torch.float64, device="cpu")
    return (draw < p).double() - (draw > 1 - p).double()


def solved(case, dtype):
    """A problem as dense as the dtype can hold exactly, and its solution."""
    for fan_in, seed in itertools.product((2.0, 1.5, 1.0, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.3), range(6)):
        problem = make(case, dtype, seed, functools.partial(integers, fan_in=fan_in))
        with np.errstate(over="ignore", invalid="ignore"):
            want, largest = by_numpy(problem)
        if largest <= WHOLE[dtype] and all(v.any() for v in want.values() if v.size):
            return problem, want
    raise AssertionError(f"nothing fits {dtype}")


@pytest.mark.parametrize("dtype", WHOLE, ids=str)
@pytest.mark.parametrize("case", EXACT, ids=str)
def test_integers_are_exact(case, dtype):
    problem, want = solved(case, dtype)
    want = {k: torch.from_numpy(v).to(device(), dtype) for k, v in want.items()}
    for isa in isas():
        _C.force_isa(isa)
        assert_same(run(problem), want, rtol=0, atol=0)
