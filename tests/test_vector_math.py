"""The CPU's vector sigmoid and tanh, and conversion from and to bf16 and f16, on every instruction set and device."""

import numpy as np
import pytest
import torch
from devices import device, flushes

from fused_rnn import _C, ops
from fused_rnn.reference import Cell

# What csrc/cpu/simd-inl.h states; measured on x86-64: sigmoid 2.2 (f32) and 2.3 (f64), tanh 2.5 in both.
MAX_ULP = 3.0
WIDER = {np.float32: np.float64, np.float64: np.longdouble}
TINY = {np.float32: np.float32(2.0**-126), np.float64: np.float64(2.0**-1022)}

pytestmark = pytest.mark.usefixtures("isa")
VECTOR = pytest.mark.cpu_only("vectors are the CPU's")


def exact(name, x):
    with np.errstate(over="ignore"):
        return np.tanh(x) if name == "tanh" else 1 / (1 + np.exp(-x))


def sweep(dtype):
    """Every order of magnitude of both signs, subnormals too, and densely where the functions bend."""
    if dtype == np.float32:
        values = np.arange(0, 2**32, 2039, dtype=np.uint64).astype(np.uint32).view(np.float32)
        dense = np.linspace(-105, 105, 700_001).astype(np.float32)
    else:
        values = np.arange(0, 2**64 - 2**46, 2**46, dtype=np.uint64).view(np.float64)[::8]
        values = values[::4]
        dense = np.concatenate([np.linspace(-45, 45, 200_001), np.linspace(-750, -690, 5_001)])
    x = np.concatenate([values, dense])
    return x[np.isfinite(x)]


@VECTOR
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_error_in_ulp(name, dtype):
    if np.finfo(WIDER[dtype]).nmant <= np.finfo(dtype).nmant:
        pytest.skip("no wider type to compare with")
    x = sweep(dtype)
    got = getattr(_C, f"vector_{name}")(x)
    assert got.dtype == dtype
    want = exact(name, x.astype(WIDER[dtype]))
    error = np.abs(got.astype(WIDER[dtype]) - want)
    normal = np.abs(want) >= TINY[dtype]
    ulp = np.spacing(np.abs(want[normal]).astype(dtype)).astype(WIDER[dtype])
    worst = np.argmax(error[normal] / ulp)
    assert (error[normal] / ulp)[worst] <= MAX_ULP, f"{x[normal][worst]!r}"
    # Results below the normal numbers: tanh's are exact, the sigmoid may give 0.
    assert (error[~normal] <= (0 if name == "tanh" else TINY[dtype])).all()
    assert (np.abs(got) <= 1).all()


@VECTOR
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda d: d.__name__)
def test_special_values(dtype):
    tiny = np.nextafter(dtype(0), dtype(1))
    x = np.array(
        [0.0, -0.0, np.inf, -np.inf, 1e30, -1e30, tiny, -tiny, np.finfo(dtype).max, -np.finfo(dtype).max], dtype
    )
    sigmoid, tanh = _C.vector_sigmoid(x), _C.vector_tanh(x)
    np.testing.assert_array_equal(sigmoid, np.array([0.5, 0.5, 1, 0, 1, 0, 0.5, 0.5, 1, 0], dtype))
    np.testing.assert_array_equal(tanh, np.array([0.0, -0.0, 1, -1, 1, -1, tiny, -tiny, 1, -1], dtype))
    np.testing.assert_array_equal(np.signbit(tanh), np.signbit(x))
    for nan in (np.nan, -np.nan):
        assert np.isnan(_C.vector_sigmoid(np.full(17, nan, dtype))).all()
        assert np.isnan(_C.vector_tanh(np.full(17, nan, dtype))).all()


@VECTOR
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_error_of_those_for_narrow_storage(name):
    x = sweep(np.float32)
    x = x[np.abs(x) >= TINY[np.float32]]
    got = getattr(_C, f"narrow_{name}")(x).astype(np.float64)
    want = exact(name, x.astype(np.float64))
    normal = np.abs(want) >= TINY[np.float32]
    assert (np.abs(got - want)[normal] <= 2.0**-18 * np.abs(want)[normal]).all()
    assert (got[~normal] <= TINY[np.float32]).all()
    assert (np.abs(got) <= 1 + 2.0**-18).all()


@VECTOR
def test_special_values_of_those_for_narrow_storage():
    x = np.array([0.0, np.inf, -np.inf, 1e30, -1e30], np.float32)
    np.testing.assert_array_equal(_C.narrow_sigmoid(x), np.array([0.5, 1, 0, 1, 0], np.float32))
    np.testing.assert_array_equal(_C.narrow_tanh(x), np.array([0, 1, -1, 1, -1], np.float32))
    for function in (_C.narrow_sigmoid, _C.narrow_tanh):
        assert np.isnan(function(np.full(17, np.nan, np.float32))).all()


@VECTOR
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda d: d.__name__)
def test_a_value_does_not_depend_on_its_lane_or_the_length(name, dtype):
    function = getattr(_C, f"vector_{name}")
    x = np.random.default_rng(0).normal(size=67).astype(dtype) * 5
    whole = function(x)
    for n in range(67):
        np.testing.assert_array_equal(function(x[n:]), whole[n:])


# ---- conversion: a linear RNN of one step hands x (through w_ih = 1) or h0 (w_hh = 1) on -------------


def pass_on(values: torch.Tensor, through: str) -> torch.Tensor:
    """One value a unit, into y through the f32 of the kernels and back."""
    n, dtype = values.numel(), values.dtype
    one, zeros = torch.ones(1, 1, dtype=dtype), torch.zeros(1, n, 1, dtype=dtype)
    x, h0 = (values.view(1, n, 1), zeros) if through == "x" else (zeros, values.view(1, n, 1))
    y, hn, _, _ = ops.layer_forward(x, h0, None, [one, one], None, Cell.RNN_LINEAR, True)
    assert y.view(-1).view(torch.int16).equal(hn.view(-1).view(torch.int16))
    return y.view(-1)


@pytest.mark.parametrize("through", ["x", "h0"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_narrow_value_survives(isa, dtype, through):
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    values = bits.view(dtype)
    got = pass_on(values, through)
    nan = values.isnan()
    assert got[nan].isnan().all()
    # the product of the other side adds +0: only -0 turns
    lost = values == 0
    if flushes() and dtype == torch.bfloat16:  # whose subnormal numbers are those of f32
        lost |= values.abs() < torch.finfo(dtype).tiny
    want = torch.where(lost, torch.zeros_like(values), values)
    assert torch.equal(got[~nan].view(torch.int16), want[~nan].view(torch.int16))


def stored(first: torch.Tensor, second: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """first * factor + second, a product and a sum in f32, as the kernels store it in the narrow dtype."""
    n, dtype = first.numel(), first.dtype
    x, h0 = torch.full((1, 1, 1), factor, dtype=dtype), torch.zeros(1, 1, n, dtype=dtype)
    weights = [first.view(n, 1), torch.zeros(n, n, dtype=dtype), second, torch.zeros(n, dtype=dtype)]
    return ops.layer_forward(x, h0, None, weights, None, Cell.RNN_LINEAR, False)[0].view(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounds_to_nearest_even(dtype):
    mantissa = {torch.bfloat16: 7, torch.float16: 10}[dtype]
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.rand(400, generator=generator, device="cpu") * 4 - 2).to(device())
    base = torch.cat([drawn, torch.tensor([1.0, 1.5, -1.0, 3.0, 255.0, 1024.0])]).to(dtype)
    step = torch.from_numpy(np.spacing(base.float().numpy(force=True))).to(device()) * 2 ** (23 - mantissa)
    # Halfway between neighbours, and a little beside it: sums that f32 holds exactly.
    for fraction in (0.5, -0.5, 0.25, -0.25, 0.5 + 2.0**-5, 0.5 - 2.0**-5, 0.75):
        offset = (step * fraction).to(dtype)
        exact = base.float() + offset.float()
        assert torch.equal(offset.float(), step * fraction)
        assert torch.equal(exact.double(), base.double() + offset.double())
        assert torch.equal(stored(base, offset), exact.to(dtype)), fraction


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_overflow_goes_to_infinity(dtype):
    largest = torch.finfo(dtype).max
    top = torch.tensor([largest, -largest], dtype=dtype)
    half = largest * torch.finfo(dtype).eps / 4  # a bit less than half the last step below the largest
    for extra, want in ((half / 2, top), (half, top), (half * 2, top.sign() / 0)):
        # in bf16 the last sum is past what f32 can hold, too
        assert torch.equal(stored(top, (top.sign() * extra).to(dtype)), want)


def test_subnormals_of_f16_round_to_even():
    values = torch.arange(-3000, 3000) * torch.tensor(2.0**-24)
    values = values.to(torch.float16)
    got = stored(values, torch.zeros_like(values), factor=0.5)
    assert torch.equal(got, (values.float() * 0.5).to(torch.float16))
    assert int((got != 0).sum()) > 5000
