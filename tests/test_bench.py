"""The benchmark on tiny shapes: what it writes, and that it refuses to time a wrong result."""

import dataclasses
import importlib.util
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from fused_rnn import cli
from fused_rnn.bench import cases, limits, memory, plot, precision, tables
from fused_rnn.bench.cases import Case, Shape
from fused_rnn.bench.gate import Gate
from fused_rnn.bench.providers import PROVIDERS, ModuleCall, Unsupported, register
from fused_rnn.bench.report import Row, line, number
from fused_rnn.bench.run import busy_cores
from fused_rnn.bench.timing import Settings, measure, quantiles

pytestmark = pytest.mark.cpu_only("the benchmark's device is an option of its own; these tests run it on the CPU")

HAS_ORT = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
FAST = ["--rounds", "2", "--block-ms", "1", "--gap-ms", "1"]
SHAPES = ["6,3,4,8", "7,4,3,8,2l,bi", "8,5,4,6,packed"]


@pytest.fixture(scope="module", autouse=True)
def _quick_and_calm():
    """Measuring the machine takes a second, and here any machine will do. One thread: on a busy machine the spinning
    of several makes a call of microseconds take milliseconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "measure", lambda dtypes, device: MACHINE)
        yield
    torch.set_num_threads(threads)


MACHINE = limits.Machine(2, dict.fromkeys(cases.DTYPES, 1e11), 32 << 10, 1 << 20, 1e11, 1e10)


@pytest.mark.parametrize("text", [*SHAPES, "1,1,1,1", "9,2,3,4,3l", "9,2,3,4,bi,packed"])
def test_shape_text_round_trip(text):
    assert str(Shape.parse(text)) == text


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,0", "1,2,3,x", "", "1,2,3,4,5,6"])
def test_bad_shape_text(text):
    with pytest.raises(ValueError, match="shape"):
        Shape.parse(text)


def test_packed_lengths():
    assert Shape.parse("100,4,1,1").lengths() == [100] * 4
    assert Shape.parse("100,4,1,1,packed").lengths() == [100, 75, 50, 25]
    assert Shape.parse("2,1,1,1,packed").lengths() == [2]


@pytest.mark.parametrize("dtype", sorted({*cases.DTYPES} - {"tf32"}))
@pytest.mark.parametrize("mode", cases.MODES)
@pytest.mark.parametrize("cell", [*cases.CELLS, "RNN_RELU"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_provider_passes_the_gate(shape, cell, mode, dtype):
    case = Case(cell, mode, dtype, Shape.parse(shape))
    reference = case.reference()
    gate = Gate(case, reference, PROVIDERS["nn"](case, reference).results())
    for name in ("fused", "recompute", "loop", "onnxruntime"):
        try:
            call = PROVIDERS[name](case, reference)
        except Unsupported:
            continue
        verdict = gate.check(call.results())
        assert verdict.right, f"{name}: {verdict.text}"


def test_gate_measures_in_float64():
    case = Case("GRU", "train", "f64", Shape.parse("5,2,3,4"))
    reference = case.reference()
    gate = Gate(case, reference, {})
    good = PROVIDERS["nn"](case, reference).results()
    assert gate.check(good).right
    for name, value in good.items():
        wrong = {**good, name: value * (1 + 1e-9)}
        assert not gate.check(wrong).right, name
    assert "wrong result: no hn" in gate.check({name: v for name, v in good.items() if name != "hn"}).text
    assert not gate.check({**good, "y": good["y"] * float("nan")}).right
    assert not gate.check({**good, "y": good["y"][:1]}).right


@pytest.fixture
def wrong_provider():
    """Right in the forward pass, wrong in one gradient."""

    class Wrong(nn.GRU):
        def forward(self, x, hx=None):
            y, h = super().forward(x, hx)
            return y + 0 * y.detach() + (self.bias_hh_l0.sum() - self.bias_hh_l0.detach().sum()) * 1e-3, h

    @register("wrong")
    def build(case, reference):
        module = Wrong(**case.arguments())
        module.load_state_dict(reference.state_dict())
        return ModuleCall(module, case)

    yield "wrong"
    del PROVIDERS["wrong"]


def test_a_wrong_result_is_not_timed(wrong_provider, tmp_path, capsys):
    path = tmp_path / "r.json"
    options = ["--cell", "GRU", "--mode", "train", "--shapes", "6,3,4,8", "--providers", "fused", wrong_provider]
    assert cli.main(["bench", *options, *FAST, "--no-memory", "--json", str(path)]) == 0
    rows = {row["provider"]: row for row in json.loads(path.read_text())["results"]}
    assert rows["wrong"]["status"] == "refused"
    assert rows["wrong"]["ms"] is None
    assert "dbias_hh_l0 off by" in rows["wrong"]["reason"]
    assert rows["fused"]["status"] == "ok"
    assert rows["fused"]["ms"] > 0
    assert "refused: wrong result: dbias_hh_l0" in capsys.readouterr().out


def test_ours_wrong_is_an_error(monkeypatch, wrong_provider):
    monkeypatch.setitem(PROVIDERS, "fused", PROVIDERS[wrong_provider])
    options = ["--cell", "GRU", "--mode", "train", "--shapes", "6,3,4,8", "--providers", "fused", *FAST, "--no-memory"]
    assert cli.main(["bench", *options]) == 1


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    assert cli.main(["bench", "--shapes", "6,3,4,8", "8,5,4,6,packed", *FAST, "--out", str(folder)]) == 0
    return folder


def test_json(results):
    document = json.loads((results / "results.json").read_text())
    assert set(document) == {"schema", "date", "header", "settings", "limits", "busy", "results"}
    facts = document["header"]
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["ISA"] in ("generic", "avx2", "avx512", "amx")
    assert "f32" in facts["precision"]
    names = {field.name for field in dataclasses.fields(Row)} - {"case"}
    for row in document["results"]:
        assert set(row) == names | {"cell", "mode", "dtype", "shape", "device"}
        if row["status"] == "ok":
            assert row["ms"] > 0
            assert row["us_per_step"] == pytest.approx(row["ms"] * 1e3 / Shape.parse(row["shape"]).T)
            assert row["ratio_low"] <= row["ratio_high"]
            assert row["share"] == pytest.approx(row["limit_ms"] / row["ms"])
            assert row["peak_mb"] is not None
            assert row["error"] < 1e-5
    seen = {row["provider"] for row in document["results"] if row["status"] == "ok"}
    assert seen == {"nn", "fused", "stream", "loop"} | ({"onnxruntime"} if HAS_ORT else set())
    assert {row["status"] for row in document["results"]} <= {"ok", "unsupported"}


def test_busy_cores_end_with_the_measurement():
    before = children()  # other tests may have left one that tracks resources
    with busy_cores(True):
        busy = children() - before
        assert len(busy) == len(os.sched_getaffinity(0))
    assert not busy & children()


def children():
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--update README.md", "--update goes with --table"),
        ("--named", "--named goes with --out"),
        ("--json {folder}", "--json {folder} is a folder"),
        ("--table {folder}/none.json", "--table {folder}/none.json: [Errno 2]"),
        ("--table {folder}/text", "--table {folder}/text: Expecting value"),
    ],
)
def test_commands_refused(options, text, tmp_path):
    """Before anything is measured."""
    (tmp_path / "text").write_text("no JSON")
    with pytest.raises(SystemExit) as refused:
        cli.main(["bench", *options.format(folder=tmp_path).split()])
    assert str(refused.value).startswith(f"fused-rnn bench: {text.format(folder=tmp_path)}")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--rounds 0", "--rounds: 0 is not a positive number"),
        ("--threads -1", "--threads: -1 is not a positive number"),
        ("--block-ms nan", "--block-ms: nan is no duration"),
        ("--gap-ms -1", "--gap-ms: -1 is no duration"),
        ("--shapes 0,1,4,4", "--shapes: shape '0,1,4,4': expected T,B,I,H"),
    ],
)
def test_options_refused(options, text, capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", *options.split()])
    assert f"argument {text}" in capsys.readouterr().err


def test_plot(results):
    pytest.importorskip("matplotlib")
    assert (results / "results.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_plot_of_one_mode_and_nothing_to_show(results, tmp_path):
    pytest.importorskip("matplotlib")
    document = json.loads((results / "results.json").read_text())
    document["results"] = [row for row in document["results"] if row["mode"] == "infer" and row["provider"] == "nn"]
    plot.draw(document, tmp_path / "p.png")
    assert (tmp_path / "p.png").exists()


def test_plot_at_a_glance(results, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.md"
    page.write_text("<!-- bench:summary begin -->")
    picture = tmp_path / "p.png"
    table = ["bench", "--table", str(results / "results.json"), "--plot", str(picture)]
    assert cli.main([*table, "--update", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}: filled\n{picture}: drawn\n"
    assert picture.stat().st_size > 10000


def test_tables_fill_marked_places_only(results, tmp_path, capsys):
    page = tmp_path / "page.md"
    before = "# Title\n\n<!-- bench:summary begin -->\nold\n<!-- bench:summary end -->\n\ntail\n"
    page.write_text(before)
    assert cli.main(["bench", "--table", str(results / "results.json"), "--update", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("# Title\n\n<!-- bench:summary begin -->")
    assert text.endswith("<!-- bench:summary end -->\n\ntail\n")
    assert "old" not in text
    assert "| 6,3,4,8 |" in text
    assert torch.__version__ in text
    assert tables.fill(text, json.loads((results / "results.json").read_text())) == text
    assert cli.main(["bench", "--table", str(results / "results.json")]) == 0
    printed = capsys.readouterr().out
    assert "| LSTM train f32 8,5,4,6,packed |" in printed
    assert "| f32 training, packed | `nn` | 3 |" in printed


def test_bf16_fills_a_table_of_its_own(results):
    document = json.loads((results / "results.json").read_text())
    place = "<!-- bench:bf16 begin -->\n<!-- bench:bf16 end -->\n"
    page = "<!-- bench:summary begin -->\nold\n<!-- bench:summary end -->\n" + place
    assert "| 6,3,4,8 |" in tables.fill(page, document)
    assert tables.fill(page, document).endswith(place)
    rows = [{**row, "dtype": "bf16"} for row in document["results"]]
    ratio = next(r["ratio"] for r in rows if (r["cell"], r["mode"], r["provider"]) == ("LSTM", "infer", "fused"))
    kept, found, filled = tables.fill(page, {**document, "results": rows}).partition("<!-- bench:bf16 begin -->")
    assert found
    assert kept == page.partition(found)[0]
    assert f"| 6,3,4,8 | {ratio:.2f} | " in filled
    assert "| bf16 training, packed | `nn` | 3 |" in filled


def test_documents_have_their_marks(request):
    for name, marks in {
        "README.md": ("summary", "cuda-summary"),
        "docs/performance.md": ("full", "bf16", "cuda-full"),
    }.items():
        text = (request.config.rootpath / name).read_text()
        for place in marks:
            _, begin, rest = text.partition(f"<!-- bench:{place} begin -->")
            inside, end, _ = rest.partition(f"<!-- bench:{place} end -->")
            assert begin, place
            assert end, place
            assert "Measured 20" in inside or inside.strip() == "Not measured yet.", place


def test_memory_of_a_known_size():
    """The training of one large layer must hold at least what it saves, and inference at least its output."""
    meter = memory.Meter()
    try:
        shape = Shape.parse("200,32,128,256")
        output = 200 * 32 * 256 * 4 / 1e6
        for provider in ("nn", "fused"):
            infer = meter.measure(Case("LSTM", "infer", "f32", shape), provider)
            train = meter.measure(Case("LSTM", "train", "f32", shape), provider)
            assert output < infer["peak_mb"] < 12 * output, (provider, infer)
            assert 5 * output < train["peak_mb"] < 30 * output, (provider, train)
        # y, c, dx, which is half of them, and pieces of a few MB
        assert 2.5 * output < meter.measure(Case("LSTM", "train", "f32", shape), "recompute")["peak_mb"] < 6 * output
        assert "error" in meter.measure(Case("LSTM", "infer", "f32", shape), "nobody")
    finally:
        meter.close()


def test_flops_and_bytes():
    flops, moved, resident = limits.work(Case("LSTM", "infer", "f32", Shape.parse("10,4,8,16")))
    assert flops == 2 * 64 * (40 * 8 + 36 * 16)
    assert moved == (9 * 64 * 16 + 64 * 8) * 4
    assert resident == 64 * 16 * 4
    both = limits.work(Case("GRU", "infer", "bf16", Shape.parse("10,4,8,16,2l,bi")))
    assert both[0] == 2 * 2 * 48 * (40 * 8 + 36 * 16) + 2 * 2 * 48 * (40 * 32 + 36 * 16)
    assert limits.work(Case("GRU", "train", "bf16", Shape.parse("10,4,8,16,2l,bi")))[0] == 3 * both[0]


def test_limit_takes_the_slower_of_products_and_weights():
    many_rows = Case("LSTM", "infer", "f32", Shape.parse("10,512,256,256"))
    assert MACHINE.limit_s(many_rows) == limits.work(many_rows)[0] / 1e11
    one_row = Case("LSTM", "infer", "f32", Shape.parse("10,1,256,256"))  # 512 KiB a core: in L2
    assert MACHINE.limit_s(one_row) == limits.work(one_row)[1] / 1e11
    large = Case("LSTM", "infer", "f32", Shape.parse("10,1,1024,1024"))  # 8 MiB a core: past L2
    assert MACHINE.limit_s(large) == limits.work(large)[1] / 1e10


def test_blocks_alternate_in_reverse_order():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
    samples = measure(calls, Settings(rounds=3, block_s=1e-5, gap_s=0))
    assert [len(sample.blocks) for sample in samples.values()] == [3, 3]
    runs = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert runs == ["a", "b", "a", "b", "a"] or runs == ["a", "b", "a", "b", "a", "b"]


def test_numbers():
    assert [number(x) for x in (1234.5, 12.345, 1.2345, 0.012345, 0.0, None)] == [
        *("1234", "12.3", "1.23", "0.0123", "0.00", ""),
    ]
    assert quantiles([5.0, 1.0, 3.0, 2.0, 4.0]) == (2.0, 4.0)
    assert line(None).split()[:3] == ["case", "provider", "ms"]


def test_sets_of_cases():
    quick, standard, grid = (list(f()) for f in (cases.quick, cases.standard, cases.grid))
    assert len(quick) == 30
    assert set(standard) < set(grid)
    assert len(set(grid)) == len(grid)
    assert any(case.shape.packed for case in quick)


def test_bad_options():
    with pytest.raises(SystemExit, match="unknown provider 'cudnn'"):
        cli.main(["bench", "--providers", "cudnn"])
    with pytest.raises(SystemExit, match="no case is left"):
        cli.main(["bench", "--quick", "--dtype", "f64"])
    with pytest.raises(SystemExit, match="tf32 is a precision of CUDA"):
        cli.main(["bench", "--quick", "--dtype", "tf32"])


def test_info(capsys):
    assert cli.main(["info"]) == 0
    assert f"torch {torch.__version__}" in capsys.readouterr().out


def test_precision_is_told():
    assert "TF32" in precision.told("cuda")
    assert "full f32" in precision.told("cpu")
