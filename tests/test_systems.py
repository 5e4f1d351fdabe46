"""The modules inside the systems of torch and the process: threads, forks, process groups, autocast, trace, export."""

from __future__ import annotations

import copy
import os
import signal
import threading
import traceback
import warnings
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from devices import device, on_cpu
from pairs import CELLS, KINDS, cast, pair, run
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.cpp_extension import CUDA_HOME

import fused_rnn


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [lambda m: None, lambda m: parametrizations.weight_norm(m, "weight_hh_l0")])
def test_one_module_in_many_threads(kind, change):
    _, ours = pair(kind, 8, 16, 2, bidirectional=True)
    change(ours)
    inputs = [torch.randn(20, 3, 8, requires_grad=True) for _ in range(4)]
    expected = [run(ours, x, None) for x in inputs]
    failures = []

    def work(i):
        try:
            for _ in range(10):
                for a, b in zip(run(ours, inputs[i], None), expected[i], strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        except BaseException:
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


@pytest.mark.cpu_only("CUDA does not work in a forked child")
@pytest.mark.parametrize("kind", KINDS)
def test_in_a_forked_child(kind):
    """Nothing but the modules may start threads here: torch's own do not survive a fork, so all other work is small."""
    _, ours = pair(kind, 8, 32, 2)
    x = torch.randn(20, 8, 8)
    expected = [t.tolist() for t in run(ours, x, None)]  # the threads of the parent are up
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # a deadlock ends the child, not the suite
        try:
            got = [t.tolist() for t in run(ours, x, None)]
            os._exit(0 if got == expected else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = fused_rnn.LSTM(3, 8, 2, bidirectional=True, batch_first=True)
        self.gru = fused_rnn.GRU(16, 4, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.gru(self.rnn(x)[0])[0])


def train(model, x, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model


def worker(rank, way, path, x, before, after):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = Model().double()
    model.load_state_dict(before)
    mine = x.chunk(2)[rank]
    if way == "ddp":
        train(nn.parallel.DistributedDataParallel(model), mine)
        got = model.state_dict()
    else:
        from torch.distributed.fsdp import fully_shard

        mesh = dist.init_device_mesh("cpu", (2,))
        for part in (model.rnn, model.gru, model):
            fully_shard(part, mesh=mesh)
        train(model, mine)
        got = {name: value.full_tensor() for name, value in model.state_dict().items()}
    for name, value in after.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-12)
    dist.destroy_process_group()


@pytest.mark.cpu_only("one GPU does not make a process group of two")
@pytest.mark.parametrize("way", ["ddp", "fully_shard"])
def test_two_processes_train_to_the_weights_of_one(way, tmp_path):
    torch.manual_seed(0)
    model, x = Model().double(), torch.randn(4, 5, 3, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    after = train(model, x).state_dict()
    mp.spawn(worker, (way, str(tmp_path / "rendezvous"), x, before, after), nprocs=2)


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_scripts_are_refused_in_words(kind):
    _, ours = pair(kind, 3, 4)
    for module in (ours, torch.nn.Sequential(ours)):
        with pytest.raises(RuntimeError, match=r"^torch\.jit\.script cannot compile modules of fused_rnn: use"):
            torch.jit.script(module)


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [None, torch.float32, torch.bfloat16])
def test_autocast(kind, dtype, given):
    """The dtypes are torch's: bf16, but on the CPU f32 from a GRU whose state is."""
    theirs, ours = pair(kind, 3, 4)
    x = torch.randn(5, 3) if kind in CELLS else torch.randn(5, 2, 3)
    h = torch.randn(5, 4) if kind in CELLS else torch.randn(1, 2, 4)
    hx = None if given is None else cast((h, h) if "LSTM" in kind else h, given)
    with torch.autocast(device().type, torch.bfloat16):
        expected, got = run(theirs, x.to(dtype), hx), run(ours, x.to(dtype), hx)
    assert [t.dtype for t in got] == [t.dtype for t in expected]
    exact = run(ours.double(), cast(x.to(dtype), torch.float64), cast(hx, torch.float64))
    for a, b, truth in zip(got, expected, exact, strict=True):
        assert (a - truth).abs().max() <= 2 * (b - truth).abs().max() + 0.01


@pytest.mark.parametrize("derivative", ["of each example", "second", "forward"])
def test_derivatives_inside_of_autocast(derivative):
    """Those of a GRU on f32, which stays in f32 there, wherever they are made."""
    module, x = fused_rnn.GRU(8, 8), torch.randn(4, 5, 3, 8)
    parameters = dict(module.named_parameters())

    def loss(parameters, x):
        return functional_call(module, parameters, (x,))[0].sin().sum()

    def made():
        if derivative == "of each example":
            return vmap(grad(loss), (None, 0))(parameters, x)
        if derivative == "forward":
            return jvp(lambda p: loss(p, x[0]), (parameters,), (parameters,))
        (first,) = torch.autograd.grad(loss(parameters, x[0]), parameters["weight_hh_l0"], create_graph=True)
        return torch.autograd.grad(first.square().sum(), parameters["weight_ih_l0"])

    want = made()
    with torch.autocast("cpu"):
        got = made()
    torch.testing.assert_close(got, want)


@pytest.mark.skipif(not on_cpu(), reason="the CPU's allocator")
def test_memory_that_is_not_there():
    """torch's words, by which programs look for the batch that fits."""
    x = torch.zeros(1).expand(2**40, 16, 1)
    with torch.no_grad(), pytest.raises(RuntimeError, match="DefaultCPUAllocator: can't allocate memory: you tried to"):
        fused_rnn.RNN(1, 1024)(x)


def test_autocast_of_another_device_changes_nothing():
    _, ours = pair("LSTM", 3, 4)
    other = "cuda" if on_cpu() else "cpu"
    with torch.autocast(other, torch.bfloat16) if other == "cpu" or torch.cuda.is_available() else nullcontext():
        assert ours(torch.randn(2, 1, 3))[0].dtype == torch.float32


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
@pytest.mark.parametrize("frozen", [False, True])
def test_trace(kind, frozen):
    """With something that requires a gradient the trace has torch's own function and stays differentiable."""
    _, ours = pair(kind, 3, 4)
    ours.requires_grad_(not frozen)
    shape = (2, 3) if kind in CELLS else (4, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(ours, torch.randn(shape))
    assert ("fused_rnn::" in str(traced.inlined_graph)) == (frozen and kind != "RNNCell")
    x = torch.randn(shape, requires_grad=not frozen)
    for a, b in zip(run(traced, x, None), run(ours, x, None), strict=True):
        torch.testing.assert_close(a, b)


class Outputs(nn.Module):
    """Only tensors come out: what an exported program returns as it stands."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_time_and_batch(kind, strict):
    _, ours = pair(kind, 3, 4, 2, bidirectional=True)
    model = Outputs(ours).eval()
    dims = {"x": {0: torch.export.Dim("T", min=1), 1: torch.export.Dim("B")}}
    program = torch.export.export(model, (torch.randn(4, 2, 3),), dynamic_shapes=dims, strict=strict).module()
    for shape in [(4, 2, 3), (9, 5, 3), (2, 7, 3)]:
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), model(x))


@pytest.mark.slow
@pytest.mark.skipif(not on_cpu() and CUDA_HOME is None, reason="for a GPU it needs the CUDA toolkit")
def test_aot_inductor(tmp_path):
    _, ours = pair("GRU", 3, 4)
    model = Outputs(ours).eval()
    dims = {"x": {0: torch.export.Dim("T", min=1, max=64), 1: None}}
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(4, 2, 3),), dynamic_shapes=dims)
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "gru.pt2"))
        compiled = torch._inductor.aoti_load_package(package)
        for steps in (4, 11):
            x = torch.randn(steps, 2, 3)
            torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_module(kind):
    """One graph, padded or packed, also where one tensor is two states and one weight is two parameters."""
    torch._dynamo.reset()
    _, ours = pair(kind, 4, 4, 2, bidirectional=True)
    ours.weight_hh_l0 = ours.weight_hh_l0_reverse
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    h, x = torch.randn(4, 3, 4), torch.randn(5, 3, 4)
    hx = (h, h) if kind == "LSTM" else h
    for input in (x, pack_padded_sequence(x, [5, 4, 2]), pack_padded_sequence(x, [2, 5, 4], enforce_sorted=False)):
        for args in ((input, None), (input, hx)):
            for a, b in zip(run(compiled, *args), run(ours, *args), strict=True):
                torch.testing.assert_close(a, b)


def test_data_parallel_replica_has_its_own_cache():
    _, ours = pair("LSTM", 3, 4)
    replica = ours._replicate_for_data_parallel()
    assert replica._flat_weights is not ours._flat_weights
    assert torch.equal(replica(torch.ones(2, 1, 3))[0], ours(torch.ones(2, 1, 3))[0])
