"""``torch.onnx.export``: standard nodes, one a layer, on which other runtimes come to the numbers of the module.

f32 by ONNX Runtime; f64, which has no kernels there, by the reference implementation of the onnx package, to 1e-12.
"""

from __future__ import annotations

import io
import logging

import pytest
import torch
from pairs import flat
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn import functional

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = [
    pytest.mark.cpu_only("a model is exported from the CPU"),
    pytest.mark.filterwarnings("ignore"),  # both exporters have much to say
]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}
I, H, P = 3, 4, 2
NETWORKS = {
    "lstm": lambda: fused_rnn.LSTM(I, H, 2, bidirectional=True),
    "gru": lambda: fused_rnn.GRU(I, H, 2, bidirectional=True, recompute=True),
    "gru_before": lambda: fused_rnn.GRU(I, H, 1, bidirectional=True, reset_after=False),
    "tanh": lambda: fused_rnn.RNN(I, H, 2, bias=False),
    "relu": lambda: fused_rnn.RNN(I, H, 1, "relu", bidirectional=True),
    "projected": lambda: fused_rnn.LSTM(I, H, 2, bidirectional=True, proj_size=P),
    "projected_one_way": lambda: fused_rnn.LSTM(I, H, 1, bias=False, proj_size=P),
}


SMOOTH = {"gate_activation": "softsign", "activation": "sigmoid"}
HARD = {"gate_activation": "hard_sigmoid", "activation": "hard_tanh"}
VARIANTS = {
    "peephole": lambda: fused_rnn.LSTM(I, H, 2, bidirectional=True, peephole=True),
    "coupled": lambda: fused_rnn.LSTM(I, H, 2, proj_size=P, peephole=True, coupled_gates=True),
    "coupled_hard": lambda: fused_rnn.LSTM(I, H, bias=False, coupled_gates=True, gate_activation="hard_sigmoid"),
    "unbounded": lambda: fused_rnn.LSTM(I, H, bidirectional=True, gate_activation="tanh", activation="relu"),
    "smooth": lambda: fused_rnn.GRU(I, H, **SMOOTH),
    "hard": lambda: fused_rnn.GRU(I, H, bidirectional=True, **HARD),
    "hard_tanh": lambda: fused_rnn.RNN(I, H, nonlinearity="hard_tanh", bias=False, bidirectional=True),
    "identity": lambda: fused_rnn.RNN(I, H, nonlinearity="identity"),
}


class Networks(nn.Module):
    """All of them in one graph, as an export takes a second."""

    def __init__(self, names):
        super().__init__()
        self.networks = nn.ModuleDict({name: (NETWORKS | VARIANTS)[name]() for name in names})

    def forward(self, states, x):  # in this order: the exporter takes a dict at the end for keywords
        return {name: network(x, states.get(name)) for name, network in self.networks.items()}

    def arguments(self, steps, rows, given):
        dtype = next(self.parameters()).dtype

        def states(net):
            slots = net.num_layers * (1 + net.bidirectional)
            h = torch.randn(slots, rows, net.proj_size or H, dtype=dtype)
            return (h, torch.randn(slots, rows, H, dtype=dtype)) if net.mode == "LSTM" else h

        return {n: states(net) for n, net in self.networks.items() if given}, torch.randn(steps, rows, I, dtype=dtype)


def export(model, *args, **options):
    return torch.onnx.export(model.eval(), args, dynamo=True, verbose=False, **options)


def tensors(value):
    return [tensor for part in value.values() for tensor in flat(part)] if isinstance(value, dict) else flat(value)


def agree(program, model, *args):
    """The ONNX model and the module, on the same arguments."""
    proto, inputs = program.model_proto, [tensor for arg in args for tensor in tensors(arg)]
    names = [value.name for value in proto.graph.input]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    dtype = inputs[0].dtype
    if dtype == torch.float32:
        results = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)
    else:
        results = onnx.reference.ReferenceEvaluator(proto).run(None, feeds)
    with torch.no_grad():
        expected = tensors(model(*args))
    assert len(results) == len(expected)
    for result, tensor in zip(results, expected, strict=True):
        largest = max(1.0, tensor.abs().max().item())  # states without a bound grow
        torch.testing.assert_close(torch.from_numpy(result), tensor, rtol=0, atol=TOLERANCE[dtype] * largest)


def recurrent(program):
    return [node for node in program.model.graph if node.op_type in ("LSTM", "GRU", "RNN")]


@pytest.mark.parametrize(("dtype", "given"), [(torch.float32, False), (torch.float64, True)])
def test_networks(dtype, given):
    names = [name for name in NETWORKS if dtype == torch.float32 or name != "relu"]  # which onnx has no activation for
    model = Networks(names).to(dtype)
    args = model.arguments(5, 2, given)
    shapes = {n: ({1: "B"}, {1: "B"}) if isinstance(s, tuple) else {1: "B"} for n, s in args[0].items()}
    program = export(model, *args, dynamic_shapes=(shapes, {0: "T", 1: "B"}))
    for steps, rows in ((5, 2), (1, 1), (9, 3), (2, 5)):
        agree(program, model, *model.arguments(steps, rows, given))
    nodes = iter(recurrent(program))
    for name, network in model.networks.items():
        for _ in range(network.num_layers):
            node = next(nodes)
            assert node.op_type == network.mode[:4].rstrip("_")
            weights, rest = node.inputs[1:4], node.inputs[4:]  # W, R, B; lengths, initial h, initial c, as far as given
            assert weights[0].shape[0] == 1 + network.bidirectional
            assert all(value is None or value.is_initializer() for value in weights)
            assert bool(rest) == given
            if given:
                assert rest[0] is None
                assert (rest[1] is None) == bool(network.proj_size)  # a projected h0 is no state of the node
            form = node.attributes.get("linear_before_reset")
            assert (form and form.value) == {"gru": 1, "gru_before": 0}.get(name)
    assert next(nodes, None) is None
    assert {node.op_type for node in program.model.graph} <= {
        *("LSTM", "GRU", "RNN", "Transpose", "Reshape", "Squeeze", "Concat", "Shape", "MatMul"),
        *(("Pad", "Split", "Slice", "Sub") if given else ()),
    }


@pytest.mark.parametrize(("dtype", "given"), [(torch.float32, False), (torch.float64, True)])
def test_variants(dtype, given):
    """f64: what the implementation of the onnx package knows."""
    model = Networks(list(VARIANTS) if dtype == torch.float32 else ["peephole", "coupled"]).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)  # into where hard functions are flat
    args = model.arguments(5, 2, given)
    shapes = {n: ({1: "B"}, {1: "B"}) if isinstance(s, tuple) else {1: "B"} for n, s in args[0].items()}
    program = export(model, *args, dynamic_shapes=(shapes, {0: "T", 1: "B"}))
    for steps, rows in ((5, 2), (1, 1), (9, 3)):
        agree(program, model, *model.arguments(steps, rows, given))
    layers = [
        (n.mode[:4].rstrip("_"), n.variant.peephole) for n in model.networks.values() for _ in range(n.num_layers)
    ]
    for node, (kind, peephole) in zip(recurrent(program), layers, strict=True):
        assert node.op_type == kind
        assert (len(node.inputs) == 8) == peephole


class OfLengths(Networks):
    def forward(self, states, x, lengths):
        return {name: network(x, states.get(name), lengths=lengths) for name, network in self.networks.items()}


@pytest.mark.parametrize(
    ("names", "given", "nodes"),
    [
        (["gru", "relu", "hard"], False, ["GRU", "GRU", "RNN", "GRU"]),
        (["projected", "peephole", "hard_tanh"], True, ["LSTM"] * 4 + ["RNN"]),
        (["projected_one_way", "coupled"], True, ["LSTM"] * 3),
    ],
)
def test_lengths(names, given, nodes):
    """As the nodes' ``sequence_lens``. Of a row without steps, of which runtimes make what they like, too."""
    model = OfLengths(names)
    args = model.arguments(5, 3, given)
    shapes = {n: ({1: "B"}, {1: "B"}) if isinstance(s, tuple) else {1: "B"} for n, s in args[0].items()}
    shapes = (shapes, {0: "T", 1: "B"}, {0: "B"})
    program = export(model, *args, torch.tensor([5, 0, 3]), dynamic_shapes=shapes)
    for steps, rows in ((5, [5, 0, 3]), (1, [1]), (9, [2, 12, -1, 7])):
        agree(program, model, *model.arguments(steps, len(rows), given), torch.tensor(rows))
    assert [node.op_type for node in recurrent(program)] == nodes


def test_lengths_in_a_program_that_was_exported_before():
    class Net(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x, lengths):
            return self.network(x, lengths=lengths)

    args = torch.randn(5, 3, I), torch.tensor([5, 0, 3])
    model = Net(fused_rnn.GRU(I, H, 2, bidirectional=True)).eval()
    agree(torch.onnx.export(fused_rnn.onnx.lower(torch.export.export(model, args)), verbose=False), model, *args)
    with pytest.raises(NotImplementedError, match="lengths of an LSTM in a program"):
        fused_rnn.onnx.lower(torch.export.export(Net(fused_rnn.LSTM(I, H)).eval(), args))


class Forms(nn.Module):
    """Layouts, cells and functions."""

    def __init__(self):
        super().__init__()
        self.rows_first = fused_rnn.GRU(I, H, batch_first=True)
        self.highway = fused_rnn.RNN(I, H, 2, connection="highway", batch_first=True)
        self.unbatched = fused_rnn.LSTM(I, H, bidirectional=True)
        self.lstm, self.gru, self.rnn = fused_rnn.LSTMCell(I, H), fused_rnn.GRUCell(I, H), fused_rnn.RNNCell(I, H)

    def forward(self, x):  # [B, T, I]
        y, h = self.rows_first(x)
        state = torch.ones(2, H, dtype=x.dtype)
        one, states = self.unbatched(x[0], (state, state))
        step = x[:, 0]
        cells = (self.lstm(step), self.gru(step), self.gru(step, step @ step.new_ones(I, H)), self.rnn(step))
        again = functional.gru(x, None, list(self.rows_first.parameters()), batch_first=True)
        return y, h, one, states, cells, again, self.highway(x)


def test_forms():
    model = Forms()
    program = export(model, torch.randn(2, 5, I), dynamic_shapes=({0: "B", 1: "T"},))
    for rows, steps in ((2, 5), (1, 1), (3, 7)):
        agree(program, model, torch.randn(rows, steps, I))
    assert [node.op_type for node in recurrent(program)] == [
        "GRU",
        "LSTM",
        "LSTM",
        "GRU",
        "GRU",
        "RNN",
        "RNN",
    ]  # once each


def test_large_weights_become_initializers_too():
    from onnxscript import optimizer

    model = fused_rnn.GRU(64, 64, bidirectional=True)
    program = export(model, torch.randn(3, 2, 64))
    agree(program, model, torch.randn(3, 2, 64))
    everything = 1 << 62
    optimizer.optimize(program.model, input_size_limit=everything, output_size_limit=everything)
    (node,) = recurrent(program)
    for value, expected in zip(node.inputs[1:4], fused_rnn.interchange.to_onnx(model)[0], strict=True):
        assert (value.const_value.numpy() == expected).all()


def test_a_program_that_was_exported_before():
    model, x = fused_rnn.LSTM(I, H, 2, bidirectional=True).eval(), torch.randn(5, 2, I)
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(model, (x,), dynamic_shapes=({0: dynamic, 1: dynamic},), strict=True)
    lowered = torch.onnx.export(fused_rnn.onnx.lower(program), verbose=False)
    assert len(recurrent(lowered)) == 2
    agree(lowered, model, torch.randn(7, 3, I))


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = fused_rnn.LSTM(I, H, batch_first=True)

    def forward(self, x, lengths):
        _, (h, _) = self.lstm(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        return h


class Reset(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = fused_rnn.GRU(I, H)

    def forward(self, x, reset):
        return self.gru(x, reset=reset)[0]


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = fused_rnn.LSTM(I, H)

    def forward(self, x):
        return self.lstm(x, cells=True)[0]


PACKED = (torch.randn(2, 5, I), torch.tensor([3, 5]))
RESET = (torch.randn(5, 2, I), torch.tensor([[False, True]] * 5))
REFUSALS = {
    "a PackedSequence cannot be exported": (Packed, PACKED),
    "reset cannot be exported": (Reset, RESET),
    "a hard tanh of gates, of an LSTM": (lambda: fused_rnn.LSTM(I, H, activation="hard_tanh"), (RESET[0],)),
    "cannot be exported to ONNX, whose nodes have none": (
        lambda: fused_rnn.GRU(I, H, gate_activation="hard_tanh"),
        (RESET[0],),
    ),
    "coupled gates can be exported to ONNX where": (
        lambda: fused_rnn.LSTM(I, H, coupled_gates=True, gate_activation="softsign"),
        (RESET[0],),
    ),
    "c of every step": (Cells, (torch.randn(5, 2, I),)),
    "got torch.bfloat16": (lambda: fused_rnn.GRU(I, H).bfloat16(), (torch.randn(5, 2, I, dtype=torch.bfloat16),)),
}


@pytest.mark.parametrize("text", REFUSALS)
def test_what_nodes_cannot_do_is_refused(text):
    make, args = REFUSALS[text]
    with pytest.raises(torch.onnx.OnnxExporterError, match=text) as caught:
        export(make(), *args)
    assert isinstance(caught.value.__cause__, NotImplementedError)
    program = torch.export.export(make().eval(), args)
    with pytest.raises(NotImplementedError, match=text):
        fused_rnn.onnx.lower(program)


DROPS = {"dropout": 0.5, "variational_dropout": True}
DRAWN = [DROPS, {"input_dropout": 0.5}, {"weight_dropout": 0.5}, {"recurrent_dropout": 0.5}]


@pytest.mark.parametrize("drops", DRAWN, ids=lambda drops: list(drops)[-1])
def test_what_is_drawn_in_training_is_refused(drops):
    """The file would hold the masks of one call; of recurrent dropout none."""
    model, x = fused_rnn.GRU(I, H, 2, **drops), torch.randn(5, 2, I)
    text = "cannot be exported to ONNX in training mode"
    with pytest.raises(torch.onnx.OnnxExporterError, match=text) as caught:
        torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert isinstance(caught.value.__cause__, NotImplementedError)
    with pytest.raises(NotImplementedError, match=text):
        fused_rnn.onnx.lower(torch.export.export(model, (x,)))
    agree(export(model, x), model, x)
    agree(torch.onnx.export(fused_rnn.onnx.lower(torch.export.export(model, (x,))), verbose=False), model, x)


def test_dropout_between_layers_is_a_node_in_training():
    """As that of torch's modules; and ``variational_dropout`` alone draws nothing."""
    model, theirs = (made(I, H, 2, dropout=0.5) for made in (fused_rnn.GRU, nn.GRU))
    x = torch.randn(5, 2, I)
    programs = [torch.onnx.export(net, (x,), dynamo=True, verbose=False) for net in (model, theirs)]
    programs.append(torch.onnx.export(fused_rnn.onnx.lower(torch.export.export(model, (x,))), verbose=False))
    for program in programs:
        assert [node.op_type for node in program.model.graph].count("Dropout") == 1
    model = fused_rnn.GRU(I, H, 2, variational_dropout=True)
    agree(torch.onnx.export(model, (x,), dynamo=True, verbose=False), model, x)


def test_the_exporter_of_torchscript():
    """It gets torch's own function, and so knows what that can do."""

    def exported(model, *args):
        file = io.BytesIO()
        torch.onnx.export(model.eval(), args, file, dynamo=False)
        session = onnxruntime.InferenceSession(file.getvalue())
        return session.run(None, {i.name: arg.numpy() for i, arg in zip(session.get_inputs(), args, strict=True)})

    model = Packed()
    (h,) = exported(model, *PACKED)
    torch.testing.assert_close(torch.from_numpy(h), model(*PACKED))
    with pytest.raises(NotImplementedError, match="reset cannot be exported"):
        exported(Reset(), *RESET)
    with pytest.raises(NotImplementedError, match=r"variants of cells .* from the CPU, by .*dynamo=True"):
        exported(nn.Sequential(fused_rnn.LSTM(I, H, peephole=True)), RESET[0])
    with pytest.raises(NotImplementedError, match="lengths cannot be exported to ONNX by the exporter of TorchScript"):
        exported(OfLengths(["relu"]), {}, torch.randn(5, 2, I), torch.tensor([5, 3]))


@pytest.fixture(autouse=True)
def _quiet():
    """The exporter's own warnings, about packages that are not there."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
