"""What every test starts from: its device, the same random numbers, and no more threads than its worker has cores."""

import os
import sys
import time
from contextlib import nullcontext

import devices
import pytest
import torch

from fused_rnn import _C

os.environ.setdefault("FUSED_RNN_FIXED_THREADS", "1")  # what a test asks for, however busy the machine is
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # each worker would have a pool of as many as cores


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="the device that the suite runs on: cpu (default) or cuda")
    parser.addoption("--kernels", choices=["own", "cuda-on-host"], default="own", help="see host_kernels.py")


def pytest_configure(config):
    name = config.getoption("--device")
    try:
        devices.use(name)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        raise pytest.UsageError(f"--device={name}: {str(error).splitlines()[0]}") from None
    if config.getoption("--kernels") == "cuda-on-host":
        import host_kernels

        host_kernels.use()


# On a GPU, where time may be short: the kernels' own tests come first, and what compiles or runs long last.
FIRST = {f"test_{name}" for name in ("loop", "exact", "clusters", "tensor_tiles", "cuda", "cuda_streams", "reset")}
LAST = {f"test_{name}" for name in ("compile", "compile_in_place", "lengths_graphs", "exported", "examples")}
UNTIL = float(os.environ.get("FUSED_RNN_TESTS_UNTIL", "inf"))  # seconds since 1970
OUT_OF_TIME = "out of time"
too_late = []


def pytest_collection_modifyitems(items):
    if not devices.on_cpu():
        items.sort(key=lambda item: (item.path.stem in LAST) - (item.path.stem in FIRST))


def pytest_runtest_logreport(report):
    if report.skipped and OUT_OF_TIME in str(report.longrepr):
        too_late.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if too_late and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = 124  # that of `timeout`


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if time.time() > UNTIL:
        pytest.skip(OUT_OF_TIME)
    cpu_only = item.get_closest_marker("cpu_only")
    if cpu_only is not None and not (devices.on_cpu() and item.config.getoption("--kernels") == "own"):
        pytest.skip(*cpu_only.args)
    if item.get_closest_marker("cuda") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _on_the_gpu(request):
    """Where a test is marked so, whatever the suite runs on."""
    with torch.device("cuda") if request.node.get_closest_marker("cuda") else nullcontext():
        yield


@pytest.fixture(autouse=True)
def _no_error_is_passed_on():
    """What a kernel did wrong on a GPU a later call would tell, and every one after it. So its worker ends, which xdist
    tells with the test's name, and starts another."""
    yield
    if devices.on_cpu():
        return
    try:
        devices.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" not in os.environ:
            raise
        print(error, file=sys.stderr, flush=True)
        os._exit(70)


def pytest_generate_tests(metafunc):
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", devices.isas(), indirect=True)


@pytest.fixture
def isa(request):
    """Each instruction set in force; elsewhere than on the CPU none."""
    _C.force_isa(request.param)
    yield request.param
    _C.force_isa("")


@pytest.fixture
def threads():
    """Sets how many torch may use, for the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
