"""The benchmark on CUDA: its cases, precision and tables. Where there is no device, one that is acted by the CPU."""

import dataclasses
import json
import time
from types import SimpleNamespace

import pytest
import torch

from fused_rnn import cli
from fused_rnn.bench import cases, cuda_cases, cuda_tables, header, limits, plot, precision, providers, run, tables
from fused_rnn.bench.cases import Case, Shape
from fused_rnn.bench.gate import Gate
from fused_rnn.bench.output import read_prices
from fused_rnn.bench.providers import PROVIDERS, Unsupported, ours_ran

FAST = ["--rounds", "2", "--block-ms", "1"]
MACHINE = limits.Machine(1, dict.fromkeys(cases.DTYPES, 1e14), 30 << 20, 60 << 20, 1e13, 4e12)


def case(text: str, device: str = "cuda") -> Case:
    cell, mode, dtype, shape = text.split()
    return Case(cell, mode, dtype, Shape.parse(shape), device)


@pytest.mark.parametrize(
    ("text", "ground"),
    {
        "LSTM infer f16 1000,16,768,768": "window",
        "LSTM train f16 500,128,256,256": "window",
        "LSTM infer f16 200,32,1024,1024": "window",
        "RNN infer f16 100,64,1024,1024": "window",
        "RNN infer f16 100,96,1024,1024": "gemm",
        "GRU infer f16 1000,16,768,768": "open",
        "LSTM infer bf16 1000,16,768,768": "open",
        "LSTM infer f16 1000,12,768,768": "open",
        "LSTM infer f16 1000,16,768,700": "open",
        "LSTM infer f16 1000,16,700,768": "open",
        "LSTM infer f16 1000,16,768,768,2l": "open",
        "LSTM infer f16 1000,16,768,768,bi": "open",
        "LSTM infer f16 1000,16,768,768,packed": "packed",
        "GRU infer f16 100,32,1024,1024": "open",
        "GRU infer f16 100,40,1024,1024": "gemm",
        "LSTM infer bf16 100,16,64,192": "small",
        "LSTM train bf16 100,16,64,192": "open",
        "LSTM train tf32 100,16,64,128,2l,bi": "small",
        "RNN infer bf16 100,16,64,384": "small",
        "RNN_RELU train bf16 100,16,64,256": "small",
        "RNN train bf16 100,16,64,257": "open",
        "LSTM infer f64 100,16,64,64": "open",
    }.items(),
)
def test_grounds(text, ground):
    assert cuda_cases.ground(case(text)) == ground


def test_sets_of_cases():
    quick, standard, grid = (list(f()) for f in (cuda_cases.quick, cuda_cases.standard, cuda_cases.grid))
    assert quick == standard[: len(quick)]  # what says most comes first
    assert standard == grid[: len(standard)]
    assert len(set(grid)) == len(grid)
    assert {found.device for found in grid} == {"cuda"}
    assert {found.dtype for found in grid} == set(cases.DTYPES)
    for some in (quick, grid):
        assert {cuda_cases.ground(found) for found in some} == set(cuda_cases.GROUNDS)
    shapes = {found.shape for found in grid}
    assert {shape.T for shape in shapes} >= {100, 1000, 2000}
    assert {shape.B for shape in shapes} >= {1, 256}
    assert {shape.H for shape in shapes} >= {64, 2048}
    # The open ground of the goals: each precision that tensor cores do, both modes, LSTM and GRU.
    on_open = {(c.cell, c.mode, c.dtype) for c in quick if cuda_cases.ground(c) == "open"}
    assert on_open >= {(c, m, d) for c in ("LSTM", "GRU") for m in cases.MODES for d in ("bf16", "f16", "tf32")}
    assert not any(found.device == "cuda" for found in cases.grid())


def test_precision_is_set_stated_and_put_back():
    def switches():
        cudnn = torch.backends.cudnn
        return (
            cudnn.rnn.fp32_precision,
            torch.get_float32_matmul_precision(),
            cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cuda.matmul.fp32_precision,
        )

    before = switches()
    for dtype, mode in {"f32": "ieee", "tf32": "tf32"}.items():
        with precision.in_force(dtype, "cuda"):
            assert precision.stated(dtype, "cuda") == mode
            # The older switches raise where the two kinds disagree; torch itself and other libraries still read them.
            assert switches()[2:4] == (mode == "tf32", mode == "tf32")
        assert switches() == before
    for dtype, device in (("bf16", "cuda"), ("f32", "cpu")):
        with precision.in_force(dtype, device):
            assert switches() == before
            assert precision.stated(dtype, device) == dtype
    with pytest.raises(ZeroDivisionError), precision.in_force("f32", "cuda"):
        1 / 0
    assert switches() == before


def test_tf32_gets_the_tolerance_of_its_rounding():
    some = case("GRU train tf32 5,2,3,4", "cpu")
    reference = some.reference()
    good = PROVIDERS["nn"](some, reference).results()
    gate = Gate(some, reference, good)
    assert gate.check({**good, "y": good["y"] * (1 + 2**-11)}).right
    assert not gate.check({**good, "y": good["y"] * (1 + 2**-6)}).right


def test_a_baseline_of_nan_allows_nothing():
    some = case("LSTM infer bf16 5,2,3,4", "cpu")
    reference = some.reference()
    good = PROVIDERS["nn"](some, reference).results()
    gate = Gate(some, reference, {name: value * float("nan") for name, value in good.items()})
    assert not gate.check({**good, "y": good["y"] * float("nan")}).right
    assert not gate.check({**good, "y": good["y"] * 2}).right


def test_ours_ran_tells_our_ops_from_torchs():
    some = case("LSTM train f32 5,2,3,4", "cpu")
    assert ours_ran(PROVIDERS["fused"](some, some.reference()))
    assert not ours_ran(PROVIDERS["nn"](some, some.reference()))


def test_native_is_for_cuda():
    some = case("LSTM train f32 5,2,3,4", "cpu")
    with pytest.raises(Unsupported, match="on CUDA only"):
        PROVIDERS["native"](some, some.reference())
    call = providers.WithoutCudnn(some.reference(), some)
    assert call.results().keys() == PROVIDERS["nn"](some, some.reference()).results().keys()
    assert torch.backends.cudnn.enabled


def test_names_of_files():
    facts = {"device": "NVIDIA H200", "commit": "1a2b3c4"}
    assert header.file_name(facts) == "h200-1a2b3c4"
    assert header.file_name({**facts, "device": "NVIDIA A100-SXM4-80GB"}) == "a100-sxm4-80gb-1a2b3c4"
    assert header.file_name({**facts, "commit": None}) == "h200-unknown"
    assert header.file_name({"device": "cpu", "threads": 2, "commit": "1a2b3c4+"}) == "cpu-2core-1a2b3c4-changed"


def test_commit_of_a_copy_without_history(monkeypatch, tmp_path):
    monkeypatch.setattr(header, "PACKAGE", tmp_path)
    monkeypatch.setenv("FUSED_RNN_COMMIT", "1a2b3c4")
    assert header.commit() == "1a2b3c4"


def test_versions(monkeypatch):
    for number, text in {91002: "9.10.2", 8907: "8.9.7", 90100: "9.1.0", None: None}.items():
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda number=number: number)
        assert header.cudnn() == text
    answer = SimpleNamespace(returncode=0, stdout="580.65.06\n")
    monkeypatch.setattr(header.subprocess, "run", lambda *args, **options: answer)
    assert header.driver() == "580.65.06"


def measured(text: str, provider: str, us: float, **more) -> dict:
    some = case(text)
    row = {field.name: field.default for field in dataclasses.fields(run.Row) if field.name not in ("case", "provider")}
    row |= {**some.as_dict(), "provider": provider, "precision": {"f32": "ieee"}.get(some.dtype, some.dtype)}
    row |= {"ms": us * some.shape.T / 1e3, "us_per_step": us, "host_us": 50.0, "peak_mb": 10.0, "share": 0.5}
    row |= {"ratio": 1.0, "ratio_low": 0.9, "ratio_high": 1.1}
    return row | more


@pytest.fixture
def document():
    """Invented numbers, for the layout alone."""
    facts = {"device": "NVIDIA X1", "driver": "1.2.3", "CUDA": "13.0", "cuDNN": "9.9.9", "torch": "2.99", "cpu": "some"}
    rows = [
        measured("LSTM infer bf16 1000,16,512,512", "nn", 8.0),
        measured("LSTM infer bf16 1000,16,512,512", "fused", 2.0, ratio=4.0),
        measured("GRU infer bf16 1000,16,512,512", "nn", 8.0),
        measured("GRU infer bf16 1000,16,512,512", "fused", 8.0, ratio=1.0),
        measured("LSTM train f16 1000,16,768,768", "nn", 5.0),
        measured("LSTM train f16 1000,16,768,768", "fused", 4.0, ratio=1.25, peak_mb=7.0),
        measured("LSTM train f32 200,16,512,512", "nn", 5.0),
        measured("LSTM train f32 200,16,512,512", "native", 50.0, ratio=0.1),
        measured("LSTM train f32 200,16,512,512", "fused", 4.0, status="refused", ms=None, ratio=None),
    ]
    price = {"what": "cluster barrier", "blocks": 16, "clusters": 1, "bytes": 0, "ns": 1.0, "low": 0.9, "high": 1.1}
    return {
        "schema": 2,
        "date": "2000-01-01",
        "header": {**facts, "commit": "1a2b3c4", "threads": 1},
        "settings": {"rounds": 5},
        "limits": None,
        "results": rows,
        "exchange": [{"device": "NVIDIA X1"}, price],
    }


def test_tables(document):
    text = cuda_tables.summary(document)
    assert "| open ground | bf16, f16, TF32 | inference | 2 | 2.00 | 1.00 (GRU bf16 1000,16,512,512) |  |  |" in text
    assert "| cuDNN's f16 window | f16 | training | 1 | 1.25 | 1.25 (LSTM f16 1000,16,768,768) | 0.70 | 0.70 |" in text
    assert "| 1000,16,512,512 | 8.00 → 2.00 **4.0x** |  | 8.00 → 8.00 **1.0x** |  |" in text
    assert "NVIDIA X1 (driver 1.2.3, CUDA 13.0, cuDNN 9.9.9); torch 2.99; fused_rnn 1a2b3c4; 5 rounds" in text
    text = cuda_tables.full(document)
    assert "| cluster barrier | 16 | 1 |  | 1.00 | 0.900 | 1.10 |" in text
    assert "| LSTM train 200,16,512,512 | f32 (ieee) | open | 5.00 | 50.0 |  | refused |" in text
    assert "| 4.00 | 0.90–1.10 | 50.0 → 50.0 | 10.0 → 10.0 | 50% |" in text


def test_a_device_fills_its_own_places(document, tmp_path):
    page = "\n".join(
        f"<!-- bench:{name} begin -->\nold {name}\n<!-- bench:{name} end -->" for name in ("summary", "cuda-summary")
    )
    new = tables.fill(page, document)
    assert "old summary" in new
    assert "old cuda-summary" not in new
    assert tables.fill(new, document) == new
    document["header"]["device"] = "cpu"
    document["results"] = []
    new = tables.fill(page, document)
    assert "old summary" not in new
    assert "old cuda-summary" in new


def test_plot(document, tmp_path):
    pytest.importorskip("matplotlib")
    plot.draw(document, tmp_path / "p.png")
    glance = plot.overview(document, tmp_path / "p.png")
    assert glance == tmp_path / "p-cuda.png"
    for path in (tmp_path / "p.png", glance):
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_prices_without_what_is_not_json(tmp_path):
    (tmp_path / "log").write_text('compiling\n{"what": "a", "ns": 1.5}\nline 12: an error\n')
    assert read_prices(tmp_path / "log") == [{"what": "a", "ns": 1.5}]


class Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


blocks: list[tuple] = []  # of weights that cuDNN was to get as one


@pytest.fixture
def acted(monkeypatch):
    """A CUDA device acted by the CPU: the whole command runs, on tensors that lie elsewhere."""
    if torch.get_default_device().type != "cpu":
        pytest.skip("there is a device")
    on_cpu = {name: getattr(Case, name) for name in ("reference", "inputs")}
    for name, real in on_cpu.items():
        acting = lambda self, real=real: real(dataclasses.replace(self, device="cpu"))  # noqa: E731
        monkeypatch.setattr(Case, name, acting)
    chip = SimpleNamespace(name="NVIDIA X1", major=9, minor=0, multi_processor_count=132, total_memory=140e9)
    acts = {
        "is_available": lambda: True,
        "synchronize": lambda: None,
        "Event": Event,
        "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: 3_000_000,
        "reset_peak_memory_stats": lambda: None,
        "get_device_properties": lambda index: chip,
    }
    for name, act in acts.items():
        monkeypatch.setattr(torch.cuda, name, act)
    monkeypatch.setattr(limits, "measure", lambda dtypes, device: MACHINE)
    monkeypatch.setattr(header, "driver", lambda: "1.2.3")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: None)  # one with CUDA would look for the device
    monkeypatch.setattr(torch, "_cudnn_rnn_flatten_weight", lambda *args: blocks.append(args))
    monkeypatch.setattr(torch.backends.cudnn.rnn, "get_cudnn_mode", {"LSTM": 2, "GRU": 3}.get)
    blocks.clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield monkeypatch
    torch.set_num_threads(threads)


def bench(*options, out):
    status = cli.main(["bench", "--device", "cuda", *FAST, "--json", str(out / "r.json"), *options])
    return status, json.loads((out / "r.json").read_text())


def test_the_command_on_an_acted_device(acted, tmp_path, capsys):
    prices = tmp_path / "exchange.log"
    prices.write_text(
        '{"what": "cluster barrier", "blocks": 2, "clusters": 1, "bytes": 0, "ns": 9, "low": 8, "high": 10}\n'
    )
    options = ["--shapes", "6,3,4,8", "8,5,4,6,packed", "--dtype", "f32", "tf32", "bf16", "--cell", "LSTM", "GRU"]
    acted.setenv("FUSED_RNN_COMMIT", "1a2b3c4")
    status, document = bench(*options, "--exchange", str(prices), "--out", str(tmp_path), "--named", out=tmp_path)
    assert status == 0
    assert document["header"]["device"] == "NVIDIA X1"
    assert document["exchange"][0]["ns"] == 9
    rows = document["results"]
    assert {row["status"] for row in rows} == {"ok"}
    said = {(row["dtype"], row["precision"]) for row in rows if row["provider"] != "nn"}
    assert said == {("f32", "ieee"), ("tf32", "tf32"), ("bf16", "bf16")}
    assert {row["precision"] for row in rows if row["provider"] == "nn"} == {f"{p} without cuDNN" for _, p in said}
    weights, each, *sizes = blocks[0]  # of bf16 alone, which torch leaves as they are
    assert {weight.dtype for block in blocks for weight in block[0]} == {torch.bfloat16}
    assert (len(weights), each, sizes) == (4, 4, [4, 2, 8, 0, 1, False, False])
    assert all(row["host_us"] > 0 and row["peak_mb"] == 3 for row in rows)
    native = [row for row in rows if row["provider"] == "native"]
    assert {row["dtype"] for row in native if not row["shape"].endswith("packed")} == {"f32"}
    written = sorted(path.name for path in tmp_path.glob("x1-*"))
    assert [name.rpartition(".")[2] for name in written] == ["json", "png"]
    said = capsys.readouterr().out
    assert "device NVIDIA X1  capability 9.0  multiprocessors 132  device GB 140  driver 1.2.3" in said
    assert "host us" in said
    assert "| ground | precision |" in said
    assert "| LSTM infer 6,3,4,8 | f32 (ieee, ieee without cuDNN) | small |" in cuda_tables.full(document)


def test_no_kernel_of_ours_is_not_timed_as_ours(acted, tmp_path, capsys):
    acted.setattr(providers, "ours_ran", lambda call: False)
    status, document = bench("--shapes", "6,3,4,8", "--dtype", "bf16", out=tmp_path)
    assert status == 1
    ours = [row for row in document["results"] if row["provider"] == "fused"]
    assert {row["status"] for row in ours} == {"unsupported"}
    assert "nothing of ours was measured" in capsys.readouterr().out


def test_a_lost_device_ends_the_run(acted, tmp_path, capsys):
    def broken(*args):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def first_then_broken(case, reference, real=PROVIDERS["fused"]):
        if case.cell == "GRU":
            acted.setattr(torch.cuda, "synchronize", broken)
            broken()
        return real(case, reference)

    acted.setitem(PROVIDERS, "fused", first_then_broken)
    status, document = bench("--shapes", "6,3,4,8", "--mode", "infer", "--dtype", "bf16", out=tmp_path)
    assert status == 1
    ours = {row["cell"]: row for row in document["results"] if row["provider"] == "fused"}
    assert [ours[cell]["status"] for cell in cases.CELLS] == ["ok", "failed", "skipped"]
    assert "illegal memory access" in ours["GRU"]["reason"]
    assert ours["RNN"]["reason"] == "the device was lost at GRU infer bf16 6,3,4,8"


def test_time_runs_out(acted, tmp_path):
    status, document = bench("--quick", "--limit-s", "1e-9", out=tmp_path)
    assert status == 1
    assert {row["reason"] for row in document["results"]} == {"out of time"}
    assert len(document["results"]) == 2 * len(list(cuda_cases.quick()))


def test_no_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        cli.main(["bench", "--device", "cuda", "--quick"])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_command_on_a_device(tmp_path):
    options = ["--shapes", "20,4,16,32", "20,4,16,32,packed", "--dtype", "f32", "tf32", "bf16", "f16"]
    _, document = bench(*options, out=tmp_path)
    peers = [row for row in document["results"] if row["provider"] in ("nn", "native")]
    assert {row["status"] for row in peers} == {"ok"}
    assert all(row["ms"] > 0 and row["peak_mb"] > 0 for row in peers)
    assert {row["precision"] for row in peers} == {"ieee", "tf32", "bf16", "f16"}
    ours = [row for row in document["results"] if row["provider"] == "fused"]
    assert not [row for row in ours if row["status"] in ("refused", "failed")]
