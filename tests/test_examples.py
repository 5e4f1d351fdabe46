"""The examples run, and assert what they promise."""

import argparse
import importlib
import json
import re
import runpy
from itertools import islice

import pytest
import torch

import fused_rnn

pytestmark = pytest.mark.cpu_only("the examples train on the CPU")


@pytest.fixture
def char_lm(request):
    return runpy.run_path(str(request.config.rootpath / "examples" / "char_lm.py"))


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_char_lm(char_lm, cell, dtype, tmp_path, capsys):
    options = "--steps 6 --hidden 24 --layers 2 --rows 4 --length 20 --characters 20000 --sample 30"
    char_lm["main"]([*options.split(), "--cell", cell, "--dtype", dtype, "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "largest relative difference" in said
    assert "def " in said
    if "no plot" not in said:
        assert (tmp_path / "char_lm.png").stat().st_size > 5000


def test_char_lm_notices_other_losses(char_lm, monkeypatch, tmp_path):
    class Wrong(fused_rnn.GRU):
        def forward(self, input, hx=None):
            y, h = super().forward(input, hx)
            return y * 1.001, h

    monkeypatch.setattr(fused_rnn, "GRU", Wrong)
    options = "--steps 3 --hidden 8 --rows 2 --length 10 --characters 5000 --sample 0 --cell GRU"
    with pytest.raises(AssertionError, match="the losses are not the same"):
        char_lm["main"]([*options.split(), "--out", str(tmp_path)])


@pytest.fixture
def python_loop(request, monkeypatch):
    monkeypatch.syspath_prepend(request.config.rootpath)
    return importlib.import_module("examples.python_loop")


LOOP = ["--rows", "3", "--hidden", "8", "--steps", "12", "--share", "0.3", "--rounds", "1", "--out"]


def test_python_loop(python_loop, tmp_path, capsys):
    python_loop.main([*LOOP, str(tmp_path), "--cells", "LSTM", "GRU", "RNN"])
    record = json.loads((tmp_path / "python_loop.json").read_text())
    assert record["command"].startswith("python -m examples.python_loop --rows 3")
    ours = [next(iter(case["milliseconds"])) for case in record["table"]]
    assert ours == ["fused_rnn.LSTM", "fused_rnn.GRU", "fused_rnn.RNN"]
    for case in record["table"]:
        assert case["episodes"] > 0
        assert case["difference"] < 1e-12
    assert "nn.GRUCell a step" in capsys.readouterr().out


def test_python_loop_notices_a_reset_not_made(python_loop, monkeypatch, tmp_path):
    class GRU(fused_rnn.GRU):
        def forward(self, input, hx=None, *, reset=None):
            return super().forward(input, hx)

    monkeypatch.setattr(fused_rnn, "GRU", GRU)
    with pytest.raises(AssertionError, match="the call and the loop are not the same"):
        python_loop.main([*LOOP, str(tmp_path), "--cells", "GRU"])


@pytest.fixture
def layer_norm_loop(python_loop):
    return importlib.import_module("examples.layer_norm_loop")


NORMALISED = ["--shapes", "6,3,9", "--rounds", "1", "--no-compile", "--out"]


def test_layer_norm_loop(layer_norm_loop, tmp_path):
    layer_norm_loop.main([*NORMALISED, str(tmp_path)])
    (case,) = json.loads((tmp_path / "layer_norm_loop.json").read_text())["table"]
    assert list(case["milliseconds"]) == ["layer_norm=True", "plain LSTM", "Python loop"]
    assert case["difference"] < 1e-12


def test_layer_norm_loop_notices_another_cell(layer_norm_loop, monkeypatch, tmp_path):
    def shifted_more(*args):
        return step(*args[:-1], 1.001 * args[-1])

    step = layer_norm_loop.step
    monkeypatch.setattr(layer_norm_loop, "step", shifted_more)
    with pytest.raises(AssertionError, match="the call and the loop are not the same"):
        layer_norm_loop.main([*NORMALISED, str(tmp_path)])


@pytest.fixture
def vanishing(python_loop):
    return importlib.import_module("examples.vanishing_gradients")


def test_vanishing_gradients(vanishing, tmp_path, capsys):
    vanishing.main(["--out", str(tmp_path), "--hidden", "8"])
    said = capsys.readouterr().out
    assert "tanh, 1.2 x orthogonal, no input             1.20  1.20" in said
    assert "exploding: x 1.1 a step" in said
    assert "in the end x 0.8" in said
    assert "at most 50.0, at the first step 5.0e+01, without clips 3.5e+04; cut at 69 steps, from step 68 back" in said
    record = json.loads((tmp_path / "vanishing_gradients.json").read_text())
    assert record["command"].startswith("python -m examples.vanishing_gradients --out")
    clipped = {case["case"]: case["clipped_steps"] for case in record["table"] if "clipped" in case["case"]}
    assert list(clipped.values()) == [84, 0, 0, 69, 83]
    if "no plots" not in said:
        assert (tmp_path / "vanishing_gradients.png").stat().st_size > 5000


def test_vanishing_gradients_notices_a_wrong_gradient(vanishing, monkeypatch):
    flow = vanishing.LayerFlow
    monkeypatch.setattr(flow, "h", property(lambda self: flow._whole(self, 0).flip(0)))
    with pytest.raises(AssertionError, match="above the bound"):
        vanishing.main(["--hidden", "4"])


def clipped(vanishing, name):
    (case,) = (case for case in vanishing.cases(4) if case.name == name)
    return case


GROWS, SHRINKS = "relu, 1.1 x identity, clipped", "tanh, 0.5 x orthogonal, no input, clipped"


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        (f"{GROWS} norm", {}, "above the bound of the clip"),
        (f"{GROWS} values", {"clip_grad_value": 6.0}, "above the bound of the clip"),
        (f"{GROWS} norm", {"clip_grad_norm": 49.0}, "not cut to the bound"),
        (f"{GROWS} values", {"clip_grad_value": 4.9}, "not cut to the bound"),
        (SHRINKS, {"clip_grad_norm": 1e-3}, "not cut to the bound"),
    ],
)
def test_vanishing_gradients_notices_another_clip(vanishing, monkeypatch, name, options, text):
    class RNN(fused_rnn.RNN):
        def __init__(self, *sizes, clip_grad_norm, clip_grad_value, **others):
            stated = clip_grad_norm is not None or clip_grad_value is not None
            super().__init__(*sizes, **others, **options if stated else {})

    monkeypatch.setattr(fused_rnn, "RNN", RNN)
    case, x = clipped(vanishing, name), torch.randn(100, 2, 4, dtype=torch.float64)
    with pytest.raises(AssertionError, match=text):
        vanishing.check_clipping(case, x, vanishing.measure(case, vanishing.network(case), x))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda rows, factor: (rows.flip(0), factor), "wrong about where"),
        (lambda rows, factor: (0 * rows, factor), "wrong about where"),
        (lambda rows, factor: (rows, factor.sqrt()), "wrong about how much"),
        (lambda rows, factor: (rows.clamp(max=1), factor), "together other rows"),
    ],
)
def test_vanishing_gradients_notices_a_wrong_record_of_clips(vanishing, monkeypatch, wrong, text):
    right = vanishing.LayerFlow.clipping.func

    def clipping(self):
        return {state: type(cut)(*wrong(*cut)) for state, cut in right(self).items()}

    monkeypatch.setattr(vanishing.LayerFlow, "clipping", property(clipping))
    with pytest.raises(AssertionError, match=text):
        vanishing.main(["--hidden", "4"])


def test_vanishing_gradients_notices_a_clip_that_never_acts(vanishing):
    case = clipped(vanishing, f"{GROWS} norm")._replace(clip_norm=1e6)
    x = torch.randn(100, 2, 4, dtype=torch.float64)
    with pytest.raises(AssertionError, match="cut at 0 steps"):
        vanishing.check_clipping(case, x, vanishing.measure(case, vanishing.network(case), x))


def test_vanishing_gradients_notices_other_bits_where_nothing_is_cut(vanishing, monkeypatch):
    network = vanishing.network
    monkeypatch.setattr(
        vanishing, "network", lambda case: network(case._replace(weight=case.weight * (1 + 1e-13 * case.clipped)))
    )
    case, x = clipped(vanishing, SHRINKS), torch.zeros(100, 2, 4, dtype=torch.float64)
    with pytest.raises(AssertionError, match="yet it is not the same"):
        vanishing.check_clipping(case, x, vanishing.measure(case, vanishing.network(case), x))


def test_adding_problem(python_loop, tmp_path, capsys):
    adding = importlib.import_module("examples.adding_problem")
    options = ["--cells", "GRU", "RNN", "--rate", "0.02", "--iterations", "250", "--out", str(tmp_path)]
    adding.main(options)
    record = json.loads((tmp_path / "adding_problem.json").read_text())
    assert record["command"].startswith("python -m examples.adding_problem --cells GRU RNN")
    assert record["GRU"]["error"] < 0.02 < 0.1 < record["RNN"]["error"]
    with pytest.raises(AssertionError, match="the LSTM has not learned"):
        adding.main(["--cells", "LSTM", "--steps", "20", "--iterations", "2", "--out", str(tmp_path)])


@pytest.fixture
def copying(python_loop):
    return importlib.import_module("examples.copy_memory")


COPY = ["--delay", "50", "--symbols", "1", "--hidden", "32", "--batch", "32", "--iterations"]


def test_copy_memory(copying, tmp_path, capsys):
    copying.main([*COPY, "250", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "copy_memory.json").read_text())
    assert record["command"].startswith("python -m examples.copy_memory --delay 50")
    assert [len(curve) for curve in record["curves"].values()] == [250, 250]
    if "no plot" not in capsys.readouterr().out:
        assert (tmp_path / "copy_memory.png").stat().st_size > 5000


def test_copy_memory_notices_that_nothing_was_learned(copying, tmp_path):
    with pytest.raises(AssertionError, match="with chrono it has not learned"):
        copying.main([*COPY, "1", "--out", str(tmp_path)])


def test_copy_memory_rows(copying):
    """Symbols, blanks, the cue, blanks; nothing between tells what was read."""
    x, wanted = copying.Task(delay=4, symbols=2, alphabet=3).rows(5, torch.Generator().manual_seed(0))
    codes = x.argmax(-1)
    assert x.shape == (8, 5, 5)
    assert torch.equal(codes[:2], wanted)
    assert codes[2:, 0].tolist() == [3, 3, 3, 3, 4, 3]
    assert (codes[2:] == codes[2:, :1]).all()


def test_forget_gate(copying, tmp_path, capsys):
    gate = importlib.import_module("examples.forget_gate")
    gate.main(["--delays", "4", "10", "40", "--iterations", "250", "--out", str(tmp_path)])
    assert "delay   40" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "forget_gate.json").read_text())["curves"]) == {"delay 4", "delay 10", "delay 40"}


def test_forget_gate_notices_what_does_not_reach(copying, monkeypatch):
    gate = importlib.import_module("examples.forget_gate")
    monkeypatch.setitem(copying.INITIAL, "chrono", copying.INITIAL["as drawn"])
    with pytest.raises(AssertionError, match="it does not reach further"):
        gate.main(["--delays", "4", "10", "40"])


def test_pictures_of_the_kernels(request, tmp_path, monkeypatch):
    """Those beside the script say what it draws now."""
    pytest.importorskip("matplotlib")
    folder = request.config.rootpath / "docs" / "pictures"
    monkeypatch.setattr("sys.argv", ["draw.py", str(tmp_path)])
    runpy.run_path(str(folder / "draw.py"), run_name="__main__")
    drawn = {path.name: re.findall(r">([^<>\n]+)</t", path.read_text()) for path in tmp_path.glob("*.svg")}
    assert drawn == {path.name: re.findall(r">([^<>\n]+)</t", path.read_text()) for path in folder.glob("*.svg")}
    assert len(drawn) == 6
    assert all(len(words) > 10 for words in drawn.values())


class TestRecurrentPPO:
    @pytest.fixture
    def ppo(self, python_loop):
        pytest.importorskip("gymnasium")
        pytest.importorskip("matplotlib")
        return importlib.import_module("examples.recurrent_ppo")

    def test_learns(self, ppo, tmp_path, capsys):
        ppo.main(["--iterations", "12", "--seeds", "1", "--least", "80", "--out", str(tmp_path)])
        curves = json.loads((tmp_path / "recurrent_ppo.json").read_text())["curves"]
        assert set(curves) == {"LSTM", "none"}
        for (curve,) in curves.values():
            assert len(curve) == 12
            assert 15 < curve[0] < 30  # as random actions do
        assert (tmp_path / "recurrent_ppo.png").stat().st_size > 5000
        assert "of the whole update" in capsys.readouterr().out

    def test_notices_that_nothing_was_learned(self, ppo):
        options = argparse.Namespace(cell="GRU", hidden=8, rows=4, iterations=1, rate=0.0, seeds=[1], least=80)
        with pytest.raises(AssertionError, match="it has not learned"):
            ppo.learn(options)

    @pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN", "none"])
    def test_rollouts(self, ppo, cell):
        """One call sees what single steps saw, and episodes begin and end where CartPole's do."""
        policy, returns = ppo.Policy(cell, 8), []
        before, after = islice(ppo.play(policy, 4, 0, returns), 2)
        for part in (before, after, after.of(torch.tensor([2, 0]))):
            logits, values, _ = policy(part.observations, part.state, part.begins)
            log_probs = torch.distributions.Categorical(logits=logits).log_prob(part.actions)
            torch.testing.assert_close((log_probs, values), (part.log_probs, part.values[:-1]), rtol=1e-4, atol=1e-5)
            first = part.observations[part.begins][None]
            fresh, _, _ = policy(first, None, torch.zeros(first.shape[:2], dtype=torch.bool))
            torch.testing.assert_close(fresh[0], logits[part.begins], rtol=1e-4, atol=1e-5)

        names = ("observations", "begins", "ended", "rewards", "terminated", "truncated")
        x, begins, ended, rewards, terminated, truncated = (
            torch.cat([getattr(before, name), getattr(after, name)]) for name in names
        )
        last = terminated | truncated
        assert begins[0].all()
        assert last.any()
        assert torch.equal(ended[1:], last[:-1])
        assert torch.equal(begins[1:], ended[:-1])
        assert (x[begins].abs() < 0.25).all()  # 0.05 radians
        assert torch.equal((x.abs() > 1).any(-1), ended)  # it fell: no random policy keeps it up for 500 steps
        assert torch.equal(rewards, (~ended).float())
        finished = last.flip(0).cumsum(0).flip(0).bool()  # steps of episodes that end in here
        assert sum(returns) == rewards[finished].sum()

    def test_advantages(self, ppo):
        """By the definition: the discounted sum of errors up to the episode's end."""
        T, B = 12, 5
        ends = torch.rand(2, T, B) < 0.15
        ends[:, 1:] &= ~(ends[0] | ends[1])[:-1]
        terminated, truncated = ends
        values, rewards = torch.randn(T + 1, B), torch.randn(T, B)
        fields = dict.fromkeys(ppo.Rollout.__dataclass_fields__, rewards)
        rollout = ppo.Rollout(**{**fields, "values": values, "terminated": terminated, "truncated": truncated})
        got = ppo.advantages(rollout)
        for b in range(B):
            for t in range(T):
                want, weight = 0.0, 1.0
                for k in range(t, T):
                    following = 0.0 if terminated[k, b] else values[k + 1, b]
                    want += weight * ((1 - ppo.GAMMA) * rewards[k, b] + ppo.GAMMA * following - values[k, b])
                    weight *= ppo.GAMMA * ppo.LAMBDA
                    if terminated[k, b] or truncated[k, b]:
                        break
                torch.testing.assert_close(got[t, b], torch.as_tensor(want), rtol=1e-5, atol=1e-5)


class TestDigits:
    @pytest.fixture
    def digits(self, python_loop):
        pytest.importorskip("sklearn")
        return importlib.import_module("examples.digits")

    def test_reads(self, digits, capsys):
        digits.main(["--read", "rows", "--hidden", "16", "--epochs", "2", "--least", "0.2"])
        assert "of 360 unseen digits read rightly" in capsys.readouterr().out

    def test_notices_that_it_cannot_read(self, digits):
        with pytest.raises(AssertionError, match=r"less than 90\.0%"):
            digits.main(["--hidden", "4", "--epochs", "1"])

    def test_sequences(self, digits):
        """The ink of an image, and nothing else, in reading order."""
        images = torch.zeros(2, 8, 8)
        images[0, 2, 5], images[0, 1, 7], images[1, 0, 0], images[1, 3, 3] = 0.5, 1.0, 0.75, 0.2
        x, lengths = digits.by_ink(images)
        assert lengths.tolist() == [2, 1]
        torch.testing.assert_close(x[0], torch.tensor([[1 / 7, 1, 1], [2 / 7, 5 / 7, 0.5]]))
        torch.testing.assert_close(x[1], torch.tensor([[0, 0, 0.75], [0, 0, 0]]))


class TestForecasting:
    @pytest.fixture
    def forecasting(self, python_loop):
        pytest.importorskip("statsmodels")
        return importlib.import_module("examples.forecasting")

    def test_forecasts(self, forecasting, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        forecasting.main(["--epochs", "30", "--out", str(tmp_path)])
        said = capsys.readouterr().out
        assert "persistence      31.6" in said
        assert (tmp_path / "forecasting.png").stat().st_size > 5000

    def test_notices_that_it_is_no_better(self, forecasting):
        with pytest.raises(AssertionError, match=r"of persistence's, not below 0\.75"):
            forecasting.main(["--epochs", "1"])

    def test_autoregression(self, forecasting):
        """Of a series that is one it knows the future."""
        x = [1.0, 0.5]
        while len(x) < 60:
            x.append(1.9 * x[-1] - x[-2] + 0.1)
        x = torch.tensor(x, dtype=torch.float64)
        torch.testing.assert_close(forecasting.autoregression(x, 30, 2), x[2:])
