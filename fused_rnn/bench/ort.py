"""ONNX Runtime as a peer: the weights of a torch module as ONNX LSTM, GRU and RNN nodes.

torch's GRU keeps b_hn inside the reset product, which is ``linear_before_reset=1``. One node is one layer with both its
directions; its output [T, D, B, H] is transposed and reshaped to [T, B, D*H] between layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from ..interchange import to_onnx
from .cases import Case
from .providers import Call, Unsupported


def graph(reference: nn.RNNBase, shape: tuple[int, int, int], packed: bool) -> bytes:
    """The serialized model: inputs x [T, B, I] (and lengths [B]), outputs y, hn (and cn)."""
    from onnx import TensorProto, helper, numpy_helper

    steps, rows, features = shape
    mode, hidden, layers = reference.mode, reference.hidden_size, reference.num_layers
    directions = 1 + reference.bidirectional
    lstm = mode == "LSTM"
    attributes: dict[str, Any] = {"hidden_size": hidden}
    if directions == 2:
        attributes["direction"] = "bidirectional"
    if mode == "GRU":
        attributes["linear_before_reset"] = 1
    if mode == "RNN_RELU":
        attributes["activations"] = ["Relu"] * directions
    nodes, initializers = [], [numpy_helper.from_array(torch.tensor([0, 0, -1]).numpy(), "merged")]
    x = "x"
    for layer, weights in enumerate(to_onnx(reference)):
        names = [f"{kind}{layer}" for kind in ("W", "R", "B")]
        for name, array in zip(names, weights, strict=True):
            initializers.append(numpy_helper.from_array(array, name))
        outputs = [f"Y{layer}", f"hn{layer}"] + ([f"cn{layer}"] if lstm else [])
        inputs = [x, *names, "lengths" if packed else ""]
        nodes.append(helper.make_node(mode.split("_")[0], inputs, outputs, **attributes))
        nodes.append(helper.make_node("Transpose", [f"Y{layer}"], [f"Z{layer}"], perm=[0, 2, 1, 3]))
        x = "y" if layer == layers - 1 else f"x{layer + 1}"
        nodes.append(helper.make_node("Reshape", [f"Z{layer}", "merged"], [x]))
    states = ["hn", "cn"] if lstm else ["hn"]
    for name in states:
        nodes.append(helper.make_node("Concat", [f"{name}{layer}" for layer in range(layers)], [name], axis=0))

    def value(name: str, *sizes: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)

    given = [value("x", steps, rows, features)]
    if packed:
        given.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [rows]))
    found = [value("y", steps, rows, directions * hidden)]
    found += [value(name, layers * directions, rows, hidden) for name in states]
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(
        helper.make_graph(nodes, "rnn", given, found, initializers), opset_imports=[opset], ir_version=8
    )
    return bytes(model.SerializeToString())


class Session:
    """A session with its inputs and outputs bound to memory once, the fastest way this peer offers."""

    def __init__(self, case: Case, reference: nn.RNNBase) -> None:
        import onnxruntime

        x, _ = case.inputs()
        packed = isinstance(x, PackedSequence)
        feeds: dict[str, Tensor] = {}
        if isinstance(x, PackedSequence):
            x, lengths = pad_packed_sequence(x)
            feeds["lengths"] = lengths.int()
        feeds["x"] = x
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        steps, rows, features = x.shape
        self.session = onnxruntime.InferenceSession(
            graph(reference, (steps, rows, features), packed), options, providers=["CPUExecutionProvider"]
        )
        self.binding = self.session.io_binding()
        self.feeds = {name: feed.contiguous().numpy() for name, feed in feeds.items()}  # bound by address: keep alive
        for name, feed in self.feeds.items():
            self.binding.bind_cpu_input(name, feed)
        self.outputs = [output.name for output in self.session.get_outputs()]
        for name in self.outputs:
            self.binding.bind_output(name)

    def __call__(self) -> object:
        return self.session.run_with_iobinding(self.binding)

    def release(self) -> None:
        for name in self.outputs:
            self.binding.bind_output(name)

    def results(self) -> dict[str, Tensor]:
        self()
        values = self.binding.copy_outputs_to_cpu()
        return {name: torch.from_numpy(value) for name, value in zip(self.outputs, values, strict=True)}


def build(case: Case, reference: nn.RNNBase) -> Call:
    if case.training:
        raise Unsupported("inference only")
    if case.dtype != "f32" or case.device != "cpu":
        raise Unsupported("its CPU recurrent nodes are float32 only")
    try:
        return Session(case, reference)
    except ImportError as missing:
        raise Unsupported(f"not installed: {missing.name}") from missing
