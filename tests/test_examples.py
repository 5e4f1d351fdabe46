"""The examples run, and assert what they promise."""

import runpy

import pytest

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
    import fused_rnn

    class Wrong(fused_rnn.GRU):
        def forward(self, input, hx=None):
            y, h = super().forward(input, hx)
            return y * 1.001, h

    monkeypatch.setattr(fused_rnn, "GRU", Wrong)
    options = "--steps 3 --hidden 8 --rows 2 --length 10 --characters 5000 --sample 0 --cell GRU"
    with pytest.raises(AssertionError, match="the losses are not the same"):
        char_lm["main"]([*options.split(), "--out", str(tmp_path)])
