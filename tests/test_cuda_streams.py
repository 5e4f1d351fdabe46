"""On a GPU: calls are work on the current stream and nothing else. They can be captured in a graph, run beside others,
never wait, give the same bits again and keep no memory."""

from __future__ import annotations

import copy

import pytest
import torch
from pairs import KINDS, flat, pair, run
from torch.nn.utils.rnn import pack_padded_sequence

pytestmark = pytest.mark.cuda

FORMS = {
    "padded": lambda x: x,
    "packed": lambda x: pack_padded_sequence(x, [2, 6, 4, 6], enforce_sorted=False),
}


def network(kind, features=3, hidden=20, **options):
    return pair(kind, features, hidden, 2, bidirectional=True, **options)[1]


@pytest.fixture
def inputs():
    """[T, B, I] each, for FORMS."""
    return [torch.randn(6, 4, 3) for _ in range(8)]


def identical(got, want):
    return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_training_step_trains_as_the_eager_one(kind, form, inputs):
    ours = network(kind)
    twin = copy.deepcopy(ours)
    packed = [FORMS[form](x) for x in inputs]

    def optimizer(net):
        return torch.optim.Adam(net.parameters(), 1e-2, capturable=True)

    def step(net, adam, x):
        adam.zero_grad(set_to_none=True)
        loss = flat(net(x))[0].square().mean()
        loss.backward()
        adam.step()
        return loss.detach()

    adam = optimizer(twin)
    want = [step(twin, adam, x).item() for x in packed]
    assert want[-1] < want[0]

    adam, given = optimizer(ours), FORMS[form](torch.zeros(6, 4, 3))
    data, got = flat(given)[0], []
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as torch wants it before a capture
        for x in packed[:3]:
            data.copy_(flat(x)[0])
            got.append(step(ours, adam, given).item())
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(ours, adam, given)
    for x in packed[3:]:
        data.copy_(flat(x)[0])
        graph.replay()
        got.append(loss.item())
    assert got == pytest.approx(want, rel=1e-5)
    torch.testing.assert_close(list(ours.parameters()), list(twin.parameters()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hidden", [64, 512])
@pytest.mark.parametrize("kind", KINDS)
def test_networks_on_two_streams(kind, hidden):
    """Side by side they share the multiprocessors: none may wait for blocks that have no place to run."""
    nets = [pair(kind, 32, hidden, seed=seed)[1] for seed in range(2)]
    data = [torch.randn(40, 16, 32) for _ in nets]
    want = [run(net, x, None) for net, x in zip(nets, data, strict=True)]
    streams = [torch.cuda.Stream() for _ in nets]
    torch.cuda.synchronize()
    got = []
    for _ in range(10):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                got.append((i, run(nets[i], data[i], None)))
    torch.cuda.synchronize()
    for i, result in got:
        torch.testing.assert_close(result, want[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_runs_after_what_its_stream_has_before_it(kind, form, inputs):
    """On a stream of its own, whose input arrives late: a kernel on another stream would read zeros."""
    ours = network(kind)
    given = FORMS[form](inputs[0])
    want = run(ours, given, None)
    late = FORMS[form](torch.zeros(6, 4, 3))
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(300_000_000)
        flat(late)[0].copy_(flat(given)[0])
        got = run(ours, late, None)
    side.synchronize()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.fixture
def no_waiting():
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_host_never_waits(kind, form, inputs, request):
    """torch's own checks, and the clock: the device is busy with something else all the time."""
    ours = network(kind, dropout=0.5)
    given = FORMS[form](inputs[0])
    for _ in range(3):  # libraries load and memory is had only once
        run(ours, given, None)
    torch.cuda.synchronize()
    request.getfixturevalue("no_waiting")
    torch.cuda._sleep(3_000_000_000)  # over a second
    run(ours, given, None)
    assert not torch.cuda.current_stream().query()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_again(kind, dtype):
    ours = network(kind, 100, 300, dtype=dtype)
    x = torch.randn(50, 33, 100, dtype=dtype, requires_grad=True)
    want = run(ours, x, None)
    assert all(t.isfinite().all() for t in want)
    for _ in range(3):
        torch.randn(1 << 22).sort()  # other work before it, and other memory for it
        assert identical(run(ours, x, None), want)


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_memory_is_kept(kind, form, train, inputs):
    ours = network(kind).requires_grad_(train)
    given = FORMS[form](inputs[0])
    for _ in range(2):
        run(ours, given, None)
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        run(ours, given, None)
        assert torch.cuda.memory_allocated() == before
