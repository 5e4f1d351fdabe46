"""What torch's FlopCounterMode counts of ours: as many as of torch's own loops."""

import pytest
import torch
from pairs import pair
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import fused_rnn

STEPS, BATCH, INPUT, HIDDEN = 7, 3, 5, 16
pytestmark = pytest.mark.cpu_only("cuDNN's are not counted")


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def of_calls(module, x):
    """Inference, training, training with a gradient of the input."""
    with torch.no_grad():
        counts = [counted(lambda: module(x))]
    counts.append(counted(lambda: module(x)[0].sum().backward()))
    counts.append(counted(lambda: module(x.detach().requires_grad_())[0].sum().backward()))
    return counts


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"num_layers": 3}, {"proj_size": 4}], ids=str
)
def test_as_many_as_of_torchs_own_loops(kind, options):
    if "proj_size" in options and kind != "LSTM":
        pytest.skip("LSTMs have projections")
    pairs = pair(kind, INPUT, HIDDEN, **options)
    theirs, ours = (module.double() for module in pairs)  # oneDNN's, of f32, are not counted
    x = torch.randn(STEPS, BATCH, INPUT, dtype=torch.float64)
    counts = of_calls(ours, x)
    assert counts == of_calls(theirs, x)
    assert min(counts) > 0


def test_steps_that_there_are():
    gru, x = fused_rnn.GRU(INPUT, HIDDEN), torch.randn(STEPS, BATCH, INPUT)
    packed = pack_padded_sequence(x, torch.tensor([STEPS, 4, 2]))
    with torch.no_grad():
        assert counted(lambda: gru(packed)) * STEPS * BATCH == counted(lambda: gru(x)) * (STEPS + 4 + 2)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {}),
        ("GRU", {}),
        ("GRU", {"reset_after": False}),
        ("LSTM", {"coupled_gates": True}),
        ("RNN", {"layer_norm": True}),
    ],
    ids=str,
)
def test_gates_made_anew_count(kind, options):
    x, cls = torch.randn(STEPS, BATCH, INPUT), getattr(fused_rnn, kind)
    infer, train, _ = of_calls(cls(INPUT, HIDDEN, **options), x)
    assert of_calls(cls(INPUT, HIDDEN, recompute=True, **options), x)[:2] == [infer, train + infer]


def test_what_an_rnn_rebuilds():
    """Nothing: its output is all that it keeps."""
    x = torch.randn(STEPS, BATCH, INPUT)
    assert of_calls(fused_rnn.RNN(INPUT, HIDDEN, recompute=True), x) == of_calls(fused_rnn.RNN(INPUT, HIDDEN), x)
