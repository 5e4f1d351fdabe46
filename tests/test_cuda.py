"""On a GPU: what cuDNN cannot do, or only with a warning, against the same network on the CPU."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from devices import native_loops
from pairs import CELLS, KINDS, cast, flat, leaves, pair, run
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn

pytestmark = pytest.mark.cuda

CPU = torch.device("cpu")
F64 = torch.float64
FORMS = {"padded": lambda x: x, "packed": lambda x: pack_padded_sequence(x, lengths(x), enforce_sorted=False)}


def lengths(x):
    """Of every row of x [T, B, I] another one, in no order."""
    T, B = x.shape[:2]
    return [max(1, T - (5 * b % B) * T // B) for b in range(B)]


def beside_cpu(net, input, hx=None, tolerance=1e-10):
    """Outputs and gradients are those of the same network on the CPU."""
    got = run(net, input, hx)
    want = run(copy.deepcopy(net).cpu(), cast(input, CPU), cast(hx, CPU))
    torch.testing.assert_close([t.cpu() for t in got], want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_run(kind):
    """Everything else here, and the whole suite on this device, would pass on torch's own functions too."""
    y = pair(kind, 3, 4)[1](torch.randn(5, 2, 3))[0]
    assert y.is_cuda
    assert "FusedLayer" in y.grad_fn.name()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_double_backward(kind, form):
    theirs, ours = pair(kind, 3, 5, 2, bidirectional=True, dtype=F64)
    x = cast(FORMS[form](torch.randn(6, 4, 3, dtype=F64)), F64)
    flat(x)[0].requires_grad_()

    def second(net, x):
        wanted = leaves(x, list(net.parameters()))
        first = torch.autograd.grad(flat(net(x))[0].square().sum(), wanted, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), wanted)

    got, want = second(ours, x), second(copy.deepcopy(ours).cpu(), cast(x, CPU))
    assert all(g.any() for g in got)
    torch.testing.assert_close([g.cpu() for g in got], list(want), rtol=1e-9, atol=1e-9)
    with pytest.raises(RuntimeError, match=r"(?i)cudnn"):
        second(theirs, x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_backward_in_eval_mode(kind, form):
    theirs, ours = pair(kind, 3, 5, 2, bidirectional=True, dropout=0.5, dtype=F64)
    x = FORMS[form](torch.randn(6, 4, 3, dtype=F64))
    beside_cpu(ours.eval(), x)
    with pytest.raises(RuntimeError, match="training mode"):
        run(theirs.eval(), x, None)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_more_steps_than_a_grid_is_high(kind, packed):
    _, ours = pair(kind, 3, 4, bidirectional=True, dtype=F64)
    x = torch.randn(70_000, 2, 3, dtype=F64)
    beside_cpu(ours, pack_padded_sequence(x, [70_000, 34_567]) if packed else x, tolerance=1e-8)


@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
def test_more_values_than_an_int_counts(kind):
    """2^31 values of y take 4.3 GB in bf16. All rows are independent, so some of them on the CPU tell of all."""
    limit = 60 << 30
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < limit:
        pytest.skip("needs 60 GiB of free GPU memory")
    T, B, H = 33, 65_536, 1024
    net = getattr(fused_rnn, kind)(1, H, dtype=torch.bfloat16).requires_grad_(False)
    net.weight_ih_l0.uniform_(-2, 2)  # torch's own scale gives outputs near 0
    x = torch.randn(T, B, 1, dtype=torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    y, state = net(x)
    assert y.numel() > 2**31
    assert torch.cuda.max_memory_allocated() < limit
    rows = torch.tensor([0, 1, B // 2, B - 1])
    y, states = y[:, rows].cpu().float(), [s[:, rows].cpu().float() for s in flat(state)]
    want, last = copy.deepcopy(net).cpu().float()(x[:, rows].cpu().float())
    for got, exact in zip((y, *states), (want, *flat(last)), strict=True):
        assert exact.std() > 0.1
        assert (got - exact).abs().mean() < 0.005
        assert (got - exact).abs().max() < 0.05


LAYOUTS = {
    "transposed": lambda w: w.t().contiguous().t(),
    "slices": lambda w: torch.cat([w, w + 1], -1)[..., : w.shape[-1]],
    "every other": lambda w: torch.stack([w, w + 1], -1)[..., 0],
    "expanded": lambda w: w[:1].expand(w.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_any_layout_without_a_warning(kind, layout):
    _, ours = pair(kind, 3, 5, 2, bidirectional=True, dtype=F64)
    function = getattr(fused_rnn.functional, {"RNN": "rnn_tanh"}.get(kind, kind.lower()))
    weights = [(LAYOUTS[layout](w) if w.dim() > 1 else w).detach().requires_grad_() for w in ours.parameters()]
    assert not any(w.is_contiguous() for w in weights if w.dim() > 1)
    x = torch.randn(6, 4, 3, dtype=F64)

    def gradients(x, weights):
        y, _ = function(x, None, weights, num_layers=2, bidirectional=True)
        return y, *torch.autograd.grad(y.sin().sum(), weights)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Attempting to run cuBLAS")  # of torch, in autograd's own thread
        got = gradients(x, weights)
    want = gradients(x.cpu(), [w.detach().cpu().contiguous().requires_grad_() for w in weights])
    torch.testing.assert_close([g.cpu() for g in got], list(want), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_reproducible(kind):
    """Its masks are of the seed and of how much was drawn since, whichever stream a call is on."""
    _, ours = pair(kind, 3, 16, 3, dropout=0.5)
    x = torch.randn(6, 4, 3)
    torch.manual_seed(5)
    first, second = (run(ours, x, None) for _ in range(2))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.manual_seed(5)
    side, other = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(other):
        torch.cuda._sleep(10_000_000)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        again = run(ours, x, None)
    torch.cuda.current_stream().wait_stream(side)
    for before, after in ((first, again), (second, run(ours, x, None))):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)  # other masks are off by far more


@pytest.mark.parametrize("given", [False, True], ids=["no-state", "state"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_autocast(kind, dtype, given):
    """Outputs have its dtype, a GRU's too; gradients have their parameters'."""
    _, ours = pair(kind, 12, 20)
    x = torch.randn(6, 12) if kind in CELLS else torch.randn(6, 4, 12)
    h = torch.randn(6, 20) if kind in CELLS else torch.randn(1, 4, 20)
    hx = None if not given else (h, h) if "LSTM" in kind else h
    with torch.autocast("cuda", dtype):
        outputs = flat(ours(x) if hx is None else ours(x, hx))
    gradients = torch.autograd.grad(sum(output.float().sum() for output in outputs), list(ours.parameters()))
    assert {output.dtype for output in outputs} == {dtype}
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    exact = copy.deepcopy(ours).double()
    hx = cast(hx, F64)
    wanted = flat(exact(x.double()) if hx is None else exact(x.double(), hx))
    truth = torch.autograd.grad(sum(output.sum() for output in wanted), list(exact.parameters()))
    for got, want in zip((*outputs, *gradients), (*wanted, *truth), strict=True):
        assert (got - want).abs().max() < 0.03 * max(want.abs().max(), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_on_the_cpu_is_refused_as_by_torch(kind):
    theirs, ours = pair(kind, 3, 4)
    x, h = torch.randn(5, 2, 3), torch.randn(1, 2, 4)

    def error(net, x, h):
        with pytest.raises(RuntimeError, match="device") as caught:
            net(x, (h, h) if kind == "LSTM" else h)
        return str(caught.value)

    for args in ((x.cpu(), h), (x, h.cpu()), (x.cpu(), h.cpu())):
        assert error(ours, *args) == error(theirs, *args)
    weight = nn.Parameter(ours.weight_hh_l0.detach().cpu())
    ours.weight_hh_l0, kept = weight, ours.weight_hh_l0
    error(ours, x, h)  # all but one weight on the GPU
    ours.cpu().weight_hh_l0 = kept
    error(ours, x.cpu(), h.cpu())  # all but one on the CPU
    beside_cpu(ours.cuda(), x, tolerance=1e-4)  # the device is as it was


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_a_device_that_is_not_the_current_one(kind):
    _, ours = pair(kind, 3, 5, 2, bidirectional=True, dtype=F64)
    ours.to("cuda:1")
    x = torch.randn(6, 4, 3, dtype=F64, device="cuda:1")
    assert {t.device for t in run(ours, x, None)} == {x.device}
    assert torch.cuda.current_device() == 0
    beside_cpu(ours, x)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_with_cuda_graphs(kind):
    torch._dynamo.reset()
    counters.clear()
    _, ours = pair(kind, 3, 20, 2, bidirectional=True)
    compiled = torch.compile(ours, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):  # it warms up, records, replays
        x = torch.randn(6, 4, 3)
        torch.compiler.cudagraph_mark_step_begin()
        got = [t.clone() for t in run(compiled, x, None)]
        torch.testing.assert_close(got, run(ours, x, None), rtol=1e-5, atol=1e-6)
    assert not counters["inductor"]["cudagraph_skips"]
    torch._dynamo.reset()


def test_the_rule_of_the_comparisons():
    """Under ``native_loops`` torch is not cuDNN, and its f32 products are in f32: what the suite is measured by."""
    theirs, _ = pair("LSTM", 64, 64)
    x = torch.randn(20, 8, 64)
    exact = copy.deepcopy(theirs).double()(x.double())[0]
    assert (theirs(x)[0] - exact).abs().max() < 2e-6
    with native_loops():
        y = theirs(x)[0]
    assert "Cudnn" not in y.grad_fn.name()
    assert (y - exact).abs().max() < 2e-6
