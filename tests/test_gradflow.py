"""What ``fused_rnn.diagnostics`` says of a gradient in words, draws of it, and tells at a command."""

import math
import subprocess
import sys

import pytest
import torch

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
    assert str(verdict(layer)) == "vanishing: x 0 a step, x 0 from the last step to the first"


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
    heat = plots.plot_gates(flow.layers[0])
    assert [axis.get_ylabel()[0] for axis in heat.axes[:3]] == ["r", "z", "n"]


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
