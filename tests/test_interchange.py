"""Weights to and from other libraries, held against what these compute: Keras on its torch backend, ONNX Runtime."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import nn

import fused_rnn
from fused_rnn import variants
from fused_rnn.interchange import from_keras, from_onnx, onnx_attributes, to_keras, to_onnx

os.environ.setdefault("KERAS_BACKEND", "torch")
pytestmark = [
    pytest.mark.cpu_only("weights are the same on every device"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras with numpy 2
]
I, H, T, B = 3, 4, 6, 2
FORMS = {  # name: (module, Keras layer, ONNX node, attributes of that)
    "lstm": (fused_rnn.LSTM, {}, "LSTM", "LSTM", {}),
    "gru": (fused_rnn.GRU, {}, "GRU", "GRU", {"linear_before_reset": 1}),
    "gru before": (fused_rnn.GRU, {"reset_after": False}, "GRU", "GRU", {"linear_before_reset": 0}),
    "tanh": (fused_rnn.RNN, {}, "SimpleRNN", "RNN", {}),
    "relu": (fused_rnn.RNN, {"nonlinearity": "relu"}, "SimpleRNN", "RNN", {"activations": ["Relu"]}),
}


@pytest.fixture(scope="module")
def keras():
    keras = pytest.importorskip("keras")
    with keras.device("cpu"):  # where there is a GPU it would take that
        yield keras


def keras_layers(keras, name, layers, bidirectional, bias):
    """Built, with random weights."""
    _, options, kind, _, _ = FORMS[name]
    form = {{"nonlinearity": "activation"}.get(name, name): value for name, value in options.items()}
    stack, features = [], I
    for _ in range(layers):
        layer = getattr(keras.layers, kind)(H, use_bias=bias, return_sequences=True, **form)
        stack.append(keras.layers.Bidirectional(layer) if bidirectional else layer)
        stack[-1].build((None, None, features))
        stack[-1].set_weights([torch.randn(w.shape).numpy() * 0.5 for w in stack[-1].get_weights()])
        features = H * (1 + bidirectional)
    return stack


def keras_outputs(stack, x):
    for layer in stack:
        x = layer(x)
    return x.detach()


def module(name, layers, bidirectional, bias, **options):
    cls, own, *_ = FORMS[name]
    return cls(I, H, num_layers=layers, bidirectional=bidirectional, bias=bias, **own, **options)


ARRANGEMENTS = [(1, False, True), (1, True, False), (2, True, True), (2, False, False)]


@pytest.mark.parametrize(("layers", "bidirectional", "bias"), ARRANGEMENTS)
@pytest.mark.parametrize("name", FORMS)
def test_keras(keras, name, layers, bidirectional, bias):
    arrangement = (layers, bidirectional, bias)
    stack, ours = keras_layers(keras, name, *arrangement), module(name, *arrangement, batch_first=True)
    options = FORMS[name][1]
    x = torch.randn(B, T, I)
    state = from_keras(*stack, **options)
    ours.load_state_dict(state)
    torch.testing.assert_close(ours(x)[0].detach(), keras_outputs(stack, x), rtol=0, atol=2e-6)
    plain = from_keras(*(layer.get_weights() for layer in stack), **options)
    assert all(torch.equal(plain[key], value) for key, value in state.items())

    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.5)
    for layer, arrays in zip(stack, to_keras(ours), strict=True):
        layer.set_weights(arrays)
    torch.testing.assert_close(ours(x)[0].detach(), keras_outputs(stack, x), rtol=0, atol=2e-6)


def test_states_of_keras(keras):
    """Both directions' final ones, and an LSTM's c."""
    layer = keras.layers.Bidirectional(keras.layers.LSTM(H, return_sequences=True, return_state=True))
    x = torch.randn(B, T, I)
    y, *states = (tensor.detach() for tensor in layer(x))
    ours = fused_rnn.LSTM(I, H, bidirectional=True, batch_first=True)
    ours.load_state_dict(from_keras(layer))
    mine, (h, c) = ours(x)
    for result, expected in zip((mine, h[0], c[0], h[1], c[1]), (y, *states), strict=True):
        torch.testing.assert_close(result.detach(), expected, rtol=0, atol=2e-6)


def test_keras_layers_in_bfloat16(keras):
    layer = keras.layers.LSTM(H, dtype="bfloat16", recurrent_initializer="zeros")  # Keras has no orthogonal one of it
    layer.build((None, None, I))
    wide = keras.layers.LSTM(H)
    wide.build((None, None, I))
    layer.set_weights(wide.get_weights())
    for name, weight in from_keras(layer).items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, from_keras(wide)[name].bfloat16())


def test_keras_layers_of_another_form(keras):
    layers = keras.layers
    other = layers.LSTM(H, activation="relu", go_backwards=True)
    gru = layers.GRU(H, go_backwards=True)
    refused = [
        (layers.GRU(H, reset_after=False), r"must have reset_after=True \(by the argument reset_after\), got Fal"),
        (layers.LSTM(H, activation="relu"), "LSTM must have activation='tanh', got 'relu'"),
        (layers.GRU(H, recurrent_activation="hard_sigmoid"), "must have recurrent_activation='sigmoid', got"),
        (layers.SimpleRNN(H, activation="relu"), r"must have activation='tanh' \(by the argument nonlinearity\)"),
        (layers.LSTM(H, go_backwards=True), "LSTM must have go_backwards=False, got True"),
        (layers.Bidirectional(layers.LSTM(H), backward_layer=other), "LSTM must have activation='tanh', got 'relu'"),
        (layers.Bidirectional(layers.LSTM(H), backward_layer=gru), "must have one kind of layer, got LSTM and GRU"),
        (layers.Bidirectional(layers.LSTM(H), merge_mode="sum"), "must have merge_mode='concat', got 'sum'"),
        (layers.Bidirectional(layers.GRU(H, reset_after=False)), "GRU must have reset_after=True"),
    ]
    for layer, text in refused:
        layer.build((None, None, I))
        with pytest.raises(ValueError, match=text):
            from_keras(layer)
    before, after = refused[0][0], layers.GRU(H)
    with pytest.raises(ValueError, match="GRU has no weights yet: build it"):
        from_keras(after)
    after.build((None, None, I))
    with pytest.raises(ValueError, match=r"GRU must have reset_after=True .* bias \[2, 3\*H\], got \[12\]"):
        from_keras(before.get_weights())
    for given in (after, after.get_weights()):
        with pytest.raises(ValueError, match=r"GRU must have reset_after=False \(by the argument reset_after\)"):
            from_keras(given, reset_after=False)
    with pytest.raises(TypeError, match="Bidirectional of one, or the list of its weights, got Dense"):
        from_keras(layers.Dense(H))


def onnx_outputs(stack, x, kind, attributes):
    """Y_h of the last node and the whole output, by ONNX Runtime; ``stack`` as ``to_onnx`` gives it."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    nodes, initializers, value = [], [], "x"
    for k, weights in enumerate(stack):
        names = [f"{name}{k}" if array is not None else "" for name, array in zip("WRBP", weights, strict=False)]
        initializers += [onnx.numpy_helper.from_array(a, n) for n, a in zip(names, weights, strict=True) if n]
        names[3:3] = [""] * 3 if len(names) == 4 else []  # lengths and states stand before P
        nodes.append(onnx.helper.make_node(kind, [value, *names], [f"Y{k}", f"h{k}"], **attributes))
        nodes.append(onnx.helper.make_node("Transpose", [f"Y{k}"], [f"Z{k}"], perm=[0, 2, 1, 3]))
        nodes.append(onnx.helper.make_node("Reshape", [f"Z{k}", "merged"], [f"y{k}"]))
        value = f"y{k}"
    initializers.append(onnx.numpy_helper.from_array(np.array([0, 0, -1]), "merged"))
    float32 = onnx.TensorProto.FLOAT
    outputs = [onnx.helper.make_tensor_value_info(name, float32, [None] * 3) for name in (f"h{k}", value)]
    inputs = [onnx.helper.make_tensor_value_info("x", float32, x.shape)]
    graph = onnx.helper.make_graph(nodes, "rnn", inputs, outputs, initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    results = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})
    return [torch.from_numpy(result) for result in results], nodes[0]


@pytest.mark.parametrize(("layers", "bidirectional", "bias"), ARRANGEMENTS)
@pytest.mark.parametrize("name", FORMS)
def test_onnx(name, layers, bidirectional, bias):
    onnx = pytest.importorskip("onnx")
    _, options, _, kind, _ = FORMS[name]
    source, x = module(name, layers, bidirectional, bias), torch.randn(T, B, I)
    stack = to_onnx(source)
    (h, y), node = onnx_outputs(stack, x, kind, onnx_attributes(source))
    expected, states = source(x)
    torch.testing.assert_close(y, expected.detach(), rtol=0, atol=2e-6)
    last = states[0] if kind == "LSTM" else states
    torch.testing.assert_close(h, last.detach()[-h.shape[0] :], rtol=0, atol=2e-6)

    of_node = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    state = from_onnx(*stack, **of_node, **options)
    own = source.state_dict()
    assert list(state) == list(own)
    assert all(torch.equal(state[key], own[key]) for key in own)


NODES = {  # module, whether its gates are coupled
    "peephole": (lambda **o: fused_rnn.LSTM(I, H, peephole=True, gate_activation="softsign", **o), False),
    "coupled": (lambda **o: fused_rnn.LSTM(I, H, coupled_gates=True, **o), True),
    "coupled_hard": (
        lambda **o: fused_rnn.LSTM(I, H, coupled_gates=True, peephole=True, gate_activation="hard_sigmoid", **o),
        True,
    ),
    "gru": (lambda **o: fused_rnn.GRU(I, H, gate_activation="hard_sigmoid", activation="identity", **o), False),
    "rnn": (lambda **o: fused_rnn.RNN(I, H, nonlinearity="identity", **o), False),
    "sigmoid": (lambda **o: fused_rnn.RNN(I, H, nonlinearity="sigmoid", **o), False),
}


@pytest.mark.parametrize(("layers", "bidirectional", "bias"), ARRANGEMENTS[:3])
@pytest.mark.parametrize("name", NODES)
def test_variants_in_onnx(name, layers, bidirectional, bias):
    """Coupled ones by nodes that are told ``input_forget`` and by nodes that are not."""
    onnx = pytest.importorskip("onnx")
    make, coupled = NODES[name]
    source, x = make(num_layers=layers, bidirectional=bidirectional, bias=bias), torch.randn(T, B, I)
    stack, kind = to_onnx(source), "RNN" if source.mode == "RNN_TANH" else source.mode
    assert [len(arrays) for arrays in stack] == [3 + source.variant.peephole] * layers
    for told in [{}, {"input_forget": 1}][: 1 + coupled]:
        (_, y), node = onnx_outputs(stack, x, kind, onnx_attributes(source) | told)
        torch.testing.assert_close(y, source(x)[0].detach(), rtol=1e-6, atol=2e-6)
    of_node = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    options = variants.describe(source.variant)
    named = {key: options[key] for key in ("gate_activation", "activation") if key in options}
    state = from_onnx(*stack, **of_node, **(named if kind != "RNN" else {"nonlinearity": source.nonlinearity}))
    own = source.state_dict()
    assert list(state) == list(own)
    assert all(torch.equal(state[key], own[key]) for key in own)


def arrays_of(gates, directions=1, layers=1, biased=True, features=I):
    rows, stack = gates * H, []
    for k in range(layers):
        shapes = [(rows, H * directions if k else features), (rows, H), *([(2 * rows,)] if biased else [])]
        stack.append([torch.randn(directions, *shape).numpy() for shape in shapes])
    return stack


LSTM, GRU, RNN = 4, 3, 1
REFUSED_NODES = [
    (arrays_of(GRU), {}, "must have linear_before_reset=1"),
    (arrays_of(GRU), {"linear_before_reset": 0}, r"must have linear_before_reset=1 \(by the argument reset_after\)"),
    (arrays_of(GRU), {"linear_before_reset": 1, "reset_after": False}, "must have linear_before_reset=0 .*, got 1"),
    (
        arrays_of(LSTM),
        {"activations": ["HardSigmoid", "Tanh", "Tanh"]},
        r"\(by the argument gate_activation and activation\), got \['HardSigmoid\(0.2, 0.5\)', 'Tanh', 'Tanh'\]",
    ),
    (
        arrays_of(LSTM),
        {"activations": ["HardSigmoid", "Tanh", "Tanh"], "gate_activation": "hard_sigmoid"},
        r"must have activations=\['HardSigmoid\(0.1667, 0.5\)', .* got \['HardSigmoid\(0.2, 0.5\)'",
    ),
    (arrays_of(GRU), {"activations": ["Tanh", "LeakyRelu"], "linear_before_reset": 1}, r"got \['Tanh', 'LeakyRelu'\]"),
    (arrays_of(RNN), {"nonlinearity": "hard_tanh", "activations": ["Clip"]}, "nodes have no hard tanh"),
    (arrays_of(LSTM), {"gate_activation": "hard_tanh"}, "nodes have no hard tanh"),
    (
        arrays_of(RNN),
        {"activations": [b"Relu"]},
        r"=\['Tanh'\] \(by the argument nonlinearity\), got \['Relu'\]",
    ),
    (
        arrays_of(RNN),
        {"nonlinearity": "relu"},
        r"=\['Relu'\] \(by the argument nonlinearity\), got \['Tanh'\]",
    ),
    (arrays_of(LSTM), {"clip": 3.0}, "must not clip, got clip=3.0"),
    (
        arrays_of(LSTM),
        {"input_forget": 1, "activations": ["Relu", "Tanh", "Tanh"], "gate_activation": "relu"},
        "input_forget=1 must be LSTMs whose gates are sigmoids",
    ),
    (arrays_of(GRU), {"input_forget": 1, "linear_before_reset": 1}, "input_forget=1 must be LSTMs"),
    (arrays_of(LSTM), {"direction": b"reverse"}, "must be forward or bidirectional, got direction='reverse'"),
    ([[*arrays_of(LSTM)[0], np.zeros((1, 4 * H))]], {}, r"expected P \[D, 3\*H\] of an LSTM, got \[1, 16\] beside R"),
    ([[*arrays_of(GRU)[0], np.zeros((1, 3 * H))]], {"linear_before_reset": 1}, "expected P"),
    (
        [[*arrays_of(LSTM)[0], np.zeros((1, 3 * H))], *arrays_of(LSTM, features=H)],
        {},
        "layer 1 must be of the first one's kind",
    ),
    (
        [arrays_of(LSTM)[0][:1] + arrays_of(GRU)[0][1:]],
        {},
        r"got \[\[1, 16, 3\], \[1, 12, 4\], \[1, 24\]\]",
    ),
    ([[None, *arrays_of(LSTM)[0][1:]]], {}, "W and R must be arrays"),
    (arrays_of(LSTM, 3), {}, "expected W"),
    (arrays_of(2), {}, "expected W"),
    ([[*arrays_of(LSTM)[0][:2], np.zeros((1, 4 * H))]], {}, "expected W"),
    (
        arrays_of(LSTM) + arrays_of(LSTM),
        {},
        "layer 1 must be of the first one's kind, of 4 features and 4 units, got 3 and",
    ),
    (
        arrays_of(LSTM) + arrays_of(GRU, features=H),
        {"linear_before_reset": 1},
        "layer 1 must be of the first one's kind",
    ),
    (arrays_of(LSTM) + arrays_of(LSTM, biased=False, features=H), {}, "layer 1 must be"),
    (arrays_of(LSTM, 2) + arrays_of(LSTM, features=2 * H), {}, "layer 1 must be"),
    ([], {}, "expected at least one layer"),
]


@pytest.mark.parametrize(("stack", "attributes", "text"), REFUSED_NODES, ids=range(len(REFUSED_NODES)))
def test_onnx_nodes_of_another_form(stack, attributes, text):
    with pytest.raises(ValueError, match=text):
        from_onnx(*stack, **attributes)


def test_attributes_are_known():
    with pytest.raises(TypeError, match="linear_before_rest"):
        from_onnx(*arrays_of(GRU), linear_before_rest=1)


@pytest.mark.parametrize(
    "arrays",
    [
        [np.zeros((I, 4 * H))],
        [np.zeros((I, 4 * H)), np.zeros((H, 4 * H)), np.zeros(H)],
        [np.zeros((I, 4 * H)), np.zeros((H, 3 * H))],
        [np.zeros((I, 2 * H)), np.zeros((H, 2 * H))],
        [np.zeros((I, 3 * H)), np.zeros((H, 3 * H)), np.zeros((2, H))],
        [np.zeros(4 * H), np.zeros(4 * H)],
        [np.zeros((I, 4 * H)), np.zeros((H, 4 * H)), np.zeros(4 * H), np.zeros((I, 4 * H)), np.zeros((H, 4 * H))],
    ],
)
def test_arrays_that_are_no_keras_weights(arrays):
    with pytest.raises(ValueError, match="expected kernel"):
        from_keras(arrays)


def test_what_has_no_counterpart():
    for function in (to_keras, to_onnx):
        with pytest.raises(ValueError, match=r"has a projection \(proj_size=2\)"):
            function(fused_rnn.LSTM(I, H, proj_size=2))
        with pytest.raises(TypeError, match="expected an LSTM, GRU or RNN module, got LSTMCell"):
            function(fused_rnn.LSTMCell(I, H))
    with pytest.raises(TypeError, match="expected Keras layers or lists of their weights, got int"):
        from_keras(3)
    with pytest.raises(ValueError, match="only torch's own cells are written"):
        to_keras(fused_rnn.LSTM(I, H, coupled_gates=True))
    with pytest.raises(ValueError, match="no peepholes, coupled gates, layer normalisation, zoneout"):
        to_keras(fused_rnn.GRU(I, H, layer_norm=True))
    for function in (to_onnx, onnx_attributes):
        with pytest.raises(ValueError, match="nodes have no hard tanh"):
            function(fused_rnn.RNN(I, H, nonlinearity="hard_tanh"))
        with pytest.raises(NotImplementedError, match="coupled gates can be exported to ONNX where"):
            function(fused_rnn.LSTM(I, H, coupled_gates=True, gate_activation="tanh"))


@pytest.mark.parametrize("convert", [to_keras, to_onnx])
@pytest.mark.parametrize("name", FORMS)
def test_all_are_copies(convert, name):
    net = module(name, 1, False, True)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    arrays = convert(net)[0]
    backward = {to_keras: from_keras, to_onnx: from_onnx}[convert]
    options = FORMS[name][1] | (FORMS[name][4] if convert is to_onnx else {})
    state = backward(arrays, **options)
    kept = {key: value.clone() for key, value in state.items()}
    for array in arrays:
        array += 1
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(torch.equal(value, kept[key]) for key, value in state.items())


def test_modules_of_torch_and_other_dtypes():
    theirs = nn.GRU(I, H, dtype=torch.bfloat16)
    arrays = to_keras(theirs)[0]
    assert {array.dtype for array in arrays} == {np.dtype("float32")}
    theirs.load_state_dict(from_keras(arrays))
    double = nn.LSTM(I, H, dtype=torch.float64)
    state = from_onnx(*to_onnx(double))
    assert all(torch.equal(state[key], value) for key, value in double.state_dict().items())
    nn.utils.parametrizations.weight_norm(double, "weight_hh_l0")
    assert np.array_equal(to_onnx(double)[0][1][0, :H], double.weight_hh_l0[:H].detach().numpy())


@pytest.mark.parametrize("write", [to_keras, to_onnx])
def test_pruned_weights_after_a_checkpoint(write):
    """A hook makes them anew, but only in a forward."""
    modules = [fused_rnn.LSTM(I, H) for _ in range(2)]
    for module in modules:
        nn.utils.prune.l1_unstructured(module, "weight_hh_l0", 0.5)
    modules[1].load_state_dict(modules[0].state_dict())
    for one, other in zip(*(write(module)[0] for module in modules), strict=True):
        np.testing.assert_array_equal(one, other)
