"""What ``fused_rnn.diagnostics`` says of a gradient in words, draws of it, and tells at a command."""

import importlib
import json
import math
import subprocess
import sys
from contextlib import contextmanager, nullcontext

import pytest
import torch
from devices import flushes
from torch.utils._python_dispatch import TorchDispatchMode

import fused_rnn
from fused_rnn import cli
from fused_rnn.diagnostics import gradient_flow, plots, table, verdict

pytestmark = pytest.mark.cpu_only("what kernels tell is in test_diagnostics.py; here it is said and drawn")
T, B, I, H = 9, 4, 3, 6


@pytest.mark.parametrize(("gain", "kind"), [(0.5, "vanishing"), (1.0, "healthy"), (2.0, "exploding")])
def test_verdicts(gain, kind):
    rnn = fused_rnn.init.orthogonal_(fused_rnn.RNN(I, H, nonlinearity="identity"), gain)
    with gradient_flow(rnn) as flow:
        rnn(torch.randn(40, B, I))[0][-1].sum().backward()
    said = verdict(flow.layers[0])
    assert said.kind == kind
    assert said.rate == pytest.approx(gain, rel=1e-4)
    assert str(said).startswith(f"{kind}: x {gain:.4g} a step")
    lines = table(flow.layers[0], rows=5).splitlines()
    assert [line.split()[0] for line in lines] == ["step", "0", "10", "20", "29", "39"]


def line(steps):
    """A plain RNN of one unit that hands its state on as it is."""
    rnn = fused_rnn.RNN(1, 1, nonlinearity="relu", bias=False)
    with torch.no_grad():
        for weight in rnn.parameters():
            weight.fill_(1.0)
    return rnn, torch.ones(steps, 1, 1)


@pytest.mark.parametrize("dead", [[90], list(range(100))], ids=["one step", "all steps"])
def test_a_gradient_that_ends_has_vanished(dead):
    rnn, x = line(100)
    x[dead] = -200.0
    with gradient_flow(rnn) as flow:
        rnn(x)[0][-1].sum().backward()
    (layer,) = flow.layers
    assert layer.h[0] == 0
    assert layer.rate == 0
    until, end = ("x 1 a step, ", 89) if dead == [90] else ("", 98)
    assert str(verdict(layer)) == f"vanishing: {until}nothing arrives at step {end}"


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("gain", "kind", "left"), [(0.5, "vanishing", 0), (2.0, "not finite", math.nan)])
def test_past_the_range_of_f32_there_is_a_rate(gain, kind, left, bidirectional):
    rnn = fused_rnn.RNN(I, H, nonlinearity="identity", bidirectional=bidirectional)
    fused_rnn.init.orthogonal_(rnn, gain)
    x = torch.zeros(400, 1, I)
    with gradient_flow(rnn) as flow:
        y = rnn(x)[0]
        (y[-1, :, :H].sum() + (y[0, :, H:].sum() if bidirectional else 0)).backward()
    for layer in flow.layers:
        said = verdict(layer)
        assert said.kind == kind
        assert said.rate == pytest.approx(gain, rel=0.02)  # the smallest numbers have few bits
        assert said.left == pytest.approx(left, nan_ok=True)
        walked = said.end if layer.reverse else 399 - said.end
        assert walked == pytest.approx(150 if gain < 1 and not flushes() else 127, abs=5)
        norms = layer.h if layer.reverse else layer.h.flip(0)
        assert (norms[:walked] > 0).all()
        assert norms[:walked].isfinite().all()
        assert norms[walked] == 0 if gain < 1 else not norms[walked].isfinite()
        assert f"{said.rate:.4g} a step" in str(said)
        assert f"at step {said.end}" in str(said)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_reset_is_no_vanishing(rows, bidirectional):
    """However many rows it is of: the rest go on, by a factor of 1."""
    rnn = fused_rnn.RNN(1, 1, nonlinearity="identity", bias=False, bidirectional=bidirectional)
    with torch.no_grad():
        for weight in rnn.parameters():
            weight.fill_(1.0)
    reset = torch.zeros(11, rows, dtype=torch.bool)
    reset[5, 0] = reset[8, -1] = True
    with gradient_flow(rnn) as flow:
        rnn(torch.ones(11, rows, 1), reset=reset)[0].sum().backward()
    for layer in flow.layers:
        passed = layer.transmission[layer.transmission.isfinite()]
        torch.testing.assert_close(passed, torch.ones_like(passed))
        assert len(passed) == (8 if rows == 1 else 10)
        assert layer.rate == pytest.approx(1)


def test_verdicts_of_nothing():
    rnn = fused_rnn.RNN(I, H)
    with gradient_flow(rnn) as flow:
        rnn(torch.randn(T, B, I))[0][0].sum().backward()  # of the first step alone
    assert str(verdict(flow.layers[0])) == "no gradient goes from step to step"
    with gradient_flow(rnn) as flow:
        (rnn(torch.randn(T, B, I))[0] * math.nan).sum().backward()
    assert str(verdict(flow.layers[0])) == "the gradient is not finite"


def test_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    options = "--steps 10 --hidden 8 --input 3 --batch 2 --jacobian --chrono 20 --clip-norm 0.5 --zoneout-c 0.2 --out"
    assert cli.main(["gradflow", "--cell", "LSTM", "IRNN", *options.split(), str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for cell in ("LSTM", "IRNN"):
        assert f"{cell}, layer 0: " in said
        assert (tmp_path / f"gradflow_gates_{cell}.png").stat().st_size > 5000
    assert "d h_9 / d h_8" in said
    assert "h clipped to  c clipped to" in said
    assert "; clipped at " in said
    assert "gate f: W_hh has spectral radius" in said
    assert (tmp_path / "gradflow.png").stat().st_size > 5000


def test_command_tells_rates_that_f32_would_not(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for nonlinearity, gain, word in (
        ("tanh", 1.0, "vanishing: x 0."),
        ("identity", 2.0, "exploding: x 2 a step, x 8e"),
    ):
        options = f"--nonlinearity {nonlinearity} --gain {gain} --steps 200 --out {tmp_path}"
        assert cli.main(["gradflow", "--cell", "RNN", *options.split()]) == 0
        assert f"RNN, layer 0: {word}" in capsys.readouterr().out


def test_command_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    options = "--cell GRU RNN --steps 12 --hidden 8 --gain 1.2 --loss all --bidirectional --layers 2 --out"
    assert cli.main(["gradflow", *options.split(), str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "GRU, layer 1 reverse: " in said
    assert "no pictures, as matplotlib is missing" in said


def test_plots_give_figures():
    pytest.importorskip("matplotlib")
    gru = fused_rnn.GRU(I, H, clip_grad_norm=0.3)
    with gradient_flow(gru) as flow:
        gru(torch.randn(T, B, I))[0].sum().backward()
    figure = plots.plot_norms({"GRU": flow.layers, "again": flow.layers})
    assert len(figure.axes) == 2
    norms, marks = figure.axes[0].get_lines()
    steps = flow.layers[0].clipping["h"].rows.nonzero().flatten().tolist()
    assert marks.get_xdata().tolist() == steps != []
    assert marks.get_ydata().tolist() == norms.get_ydata()[steps].tolist()
    assert figure.axes[0].get_yscale() == "log"
    assert figure.axes[0].get_title().startswith("GRU: vanishing, x 0.")
    heat = plots.plot_gates(flow.layers[0])
    assert [axis.get_ylabel()[0] for axis in heat.axes[:3]] == ["r", "z", "n"]


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (4, 1, 4), (5, 2, 3), (9, 3, 3), (15, 4, 4)])
def test_panels_are_wrapped(count, rows, columns):
    """No title, label or legend lies on another panel."""
    pytest.importorskip("matplotlib")
    rnn, x = line(30)
    with gradient_flow(rnn) as flow:
        rnn(x)[0].sum().backward()
    names = [f"a name as long as those of a study, number {k}" for k in range(count)]
    figure = plots.plot_norms(dict.fromkeys(names, flow.layers))
    assert [axes.get_title().split("\n")[0] for axes in figure.axes] == names
    assert figure.axes[0].get_gridspec().get_geometry() == (rows, columns)
    assert [bool(axes.get_ylabel()) for axes in figure.axes] == [k % columns == 0 for k in range(count)]
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert not any(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[:k])
    assert all(0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 <= height for box in boxes)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--cell RNN --chrono 50", "--chrono is for GRU and LSTM, got --cell RNN"),
        ("--cell GRU IRNN --forget-bias 3", "--forget-bias is for LSTM, got --cell GRU IRNN"),
        ("--cell GRU --zoneout-c 0.5", "--zoneout-c is for LSTM"),
        ("--cell LSTM --nonlinearity relu", "--nonlinearity is for RNN"),
        ("--cell IRNN --gain 2", "--gain is for GRU and LSTM and RNN"),
        ("--forget-bias 1 --chrono 9", "--forget-bias and --chrono set the same bias"),
        ("--bidirectional --jacobian", "--jacobian is of one direction"),
        ("--steps 1 --jacobian", "--jacobian is of one direction and two steps"),
        ("--clip-norm -1", "clip_grad_norm should be a positive number"),
        ("--zoneout-h 2", "zoneout_h should be a number in range"),
        ("--cell RNN --nonlinearity foo", "Unknown nonlinearity 'foo'"),
        ("--chrono 1", "expected 1 < min_steps"),
        ("--steps 3 --hidden 4 --out /dev/null/x", "[Errno"),
    ],
)
def test_commands_refused(options, text):
    with pytest.raises(SystemExit) as refused:
        cli.main(["gradflow", *options.split()])
    assert str(refused.value).startswith(f"fused-rnn gradflow: {text}")


@pytest.mark.parametrize("option", ["steps", "batch", "input", "hidden", "layers", "rows"])
def test_commands_of_nothing(option, capsys):
    with pytest.raises(SystemExit):
        cli.main(["gradflow", f"--{option}", "0"])
    assert f"argument --{option}: 0 is not a positive number" in capsys.readouterr().err


def test_the_package_is_a_command():
    done = subprocess.run([sys.executable, "-m", "fused_rnn", "info"], capture_output=True, text=True, check=True)
    assert "fused_rnn" in done.stdout


def test_a_command_on_a_network_that_is_not_finite(tmp_path, capsys):
    assert cli.main(["gradflow", *f"--gain 1e200 --steps 4 --hidden 8 --out {tmp_path}".split()]) == 0
    assert "W_hh has spectral radius nan, norm nan" in capsys.readouterr().out


@pytest.mark.parametrize(("layers", "bidirectional"), [(4, True), (8, False), (8, True)])
def test_lines_of_a_stack_differ(layers, bidirectional):
    pytest.importorskip("matplotlib")
    stack = fused_rnn.GRU(I, H, layers, bidirectional=bidirectional)
    with gradient_flow(stack) as flow:
        stack(torch.randn(T, B, I))[0].sum().backward()
    (panel,) = plots.plot_norms({"GRU": flow.layers}).axes
    looks = [(str(line.get_color()), line.get_linestyle()) for line in panel.get_lines()]
    assert len(set(looks)) == len(looks) == len(flow.layers)
    if bidirectional:
        assert {look[1] for look in looks} == {"-", "--"}
        assert all(a[0] == b[0] for a, b in zip(looks[::2], looks[1::2], strict=True))


def test_cost_of_looking(tmp_path, capsys, monkeypatch):
    """The example that measures it, and that it notices a gradient which is not the same."""
    recording = importlib.import_module("examples.recording")
    small = ["--cells", "GRU", "--shapes", "5,2,4", "--seconds", "0.01", "--out", str(tmp_path)]
    threads = torch.get_num_threads()
    recording.main(small)
    assert torch.get_num_threads() == threads
    (row,) = json.loads((tmp_path / "recording.json").read_text())["table"]
    assert row["backward_us"] > 0
    assert row["on"].keys() == row["gates=False"].keys() == {"backward", "step"}
    assert "GRU  T    5 B   2 H   4" in capsys.readouterr().out

    @contextmanager
    def disturbing(module, gates=True):
        module.weight_hh_l0.data += 1e-3
        yield

    monkeypatch.setattr(recording, "gradient_flow", disturbing)
    with pytest.raises(AssertionError, match="on has other gradients"):
        recording.main(small)


def test_a_reader_that_leaves(tmp_path):
    """As `fused-rnn gradflow | head -1` does: no traceback."""
    command = [sys.executable, "-m", "fused_rnn", "gradflow", "--steps", "50", "--rows", "50", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


def test_a_mode_that_looks_on():
    """Lengths are read in it, too."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    rnn, x, lengths = fused_rnn.RNN(I, H), torch.randn(9, 4, I), torch.tensor([3, 9, 0, 5])
    flows = []
    for mode in (Watch(), nullcontext()):
        with gradient_flow(rnn) as flow, mode:
            rnn(x, lengths=lengths)[0].sum().backward()
        flows.append(flow.layers[0].h)
    assert torch.equal(*flows)
