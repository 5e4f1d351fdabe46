"""Weights from and to Keras layers and ONNX nodes, gates reordered; neither library need be installed.

    lstm.load_state_dict(fused_rnn.interchange.from_keras(layer))  # or layer.get_weights()
    layer.set_weights(fused_rnn.interchange.to_keras(lstm)[0])

``from_keras`` and ``from_onnx`` take arrays (numpy's, or tensors) and give a ``state_dict`` for an ``LSTM``, ``GRU`` or
``RNN`` of this package or of ``torch.nn``; the number of gates tells which. ``to_keras`` and ``to_onnx`` take such a
module and give numpy arrays, float32 ones of bfloat16. All are copies. A layer with both its directions is one argument
or one entry of the list. What the other side computes by another formula is refused. Orders of gates, layouts and
examples are in docs/interchange.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.rnn import RNNBase

from .layouts import KERAS, ONNX, TORCH, Layer, gates_of, layers_of, reordered, state_dict
from .onnx_nodes import node_weights
from .reference import Weights

__all__ = ["from_keras", "from_onnx", "to_keras", "to_onnx"]


def from_keras(*layers: Any, nonlinearity: str = "tanh") -> dict[str, Tensor]:
    """The ``state_dict`` of a stack of Keras layers, the lowest first.

    Args:
        layers: each an LSTM, GRU, SimpleRNN or Bidirectional layer, whose configuration is checked; or the list that
            its ``get_weights()`` gives, all else being taken on trust: kernel [I, G*H], recurrent_kernel [H, G*H] and,
            if there is one, bias [G*H] (a GRU's [2, 3*H]); for Bidirectional those of both directions.
        nonlinearity: of the ``RNN`` the weights are for, "tanh" or "relu".

    Raises:
        TypeError: for something else than a layer or its weights.
        ValueError: for arrays of other shapes, layers that do not fit on each other, a GRU with ``reset_after=False``,
            other activations, ``go_backwards``, another ``merge_mode`` than "concat".
    """
    return state_dict([_keras_layer(_keras_arrays(layer, nonlinearity)) for layer in layers])


def to_keras(module: RNNBase) -> list[list[Any]]:
    """For each layer what ``set_weights`` of its Keras layer takes: kernel [I, G*H], recurrent_kernel [H, G*H] and, if
    ``module`` has biases, bias [G*H], the sum of b_ih and b_hh (a GRU's [2, 3*H], not summed); of two directions both.

    Raises:
        TypeError: for something else than an LSTM, GRU or RNN module.
        ValueError: for a projected LSTM, or a variant of a cell.
    """

    def arrays(weights: Weights) -> list[Any]:
        w_ih, w_hh, b_ih, b_hh, *_ = reordered(weights, TORCH, KERAS)
        tensors = [w_ih.t(), w_hh.t()]
        if b_ih is not None and b_hh is not None:
            tensors.append(torch.stack([b_ih, b_hh]) if gates_of(w_hh) == 3 else b_ih + b_hh)
        return [_array(tensor) for tensor in tensors]

    return [[array for weights in layer for array in arrays(weights)] for layer in _unprojected(module)]


def from_onnx(
    *layers: Sequence[Any],
    nonlinearity: str = "tanh",
    linear_before_reset: int = 0,
    activations: Sequence[str | bytes] | None = None,
    clip: float | None = None,
    input_forget: int = 0,
    direction: str | bytes = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """The ``state_dict`` of a stack of ONNX LSTM, GRU or RNN nodes, the lowest first.

    Args:
        layers: for each W [D, G*H, I], R [D, G*H, H], and B [D, 2*G*H] and P, either of which may be None or left out.
        nonlinearity: of the ``RNN`` the weights are for, "tanh" or "relu".
        linear_before_reset, ...: the attributes of these nodes, with ONNX's own defaults, so that a GRU's
            ``linear_before_reset=1`` has to be given. The last four change nothing here.

    Raises:
        ValueError: for arrays of other shapes, layers that do not fit on each other, a GRU with
            ``linear_before_reset=0``, other activations, ``clip``, ``input_forget``, peepholes P, nodes of the reverse
            direction alone.
    """
    state = state_dict([_onnx_layer(*layer) for layer in layers])
    number = gates_of(state["weight_hh_l0"])
    standard = {4: ["Sigmoid", "Tanh", "Tanh"], 3: ["Sigmoid", "Tanh"], 1: ["Tanh"]}[number]
    given = [_text(name) for name in activations or standard]
    ours = [nonlinearity.capitalize()] if number == 1 else standard
    if [name.lower() for name in given] not in ([name.lower() for name in ours * d] for d in (1, 2)):
        raise ValueError(f"nodes must have activations={ours}{_BY_ARGUMENT if number == 1 else ''}, got {given}")
    if number == 3 and not linear_before_reset:
        raise ValueError("GRU nodes must have linear_before_reset=1: here r is applied after the product with R")
    if clip is not None:
        raise ValueError(f"nodes must not clip, got clip={clip}")
    if input_forget:
        raise ValueError("LSTM nodes must have a forget gate of their own, got input_forget=1")
    if _text(direction) == "reverse":
        raise ValueError("nodes must be forward or bidirectional, got direction='reverse'")
    return state


def to_onnx(module: RNNBase) -> list[tuple[Any, Any, Any]]:
    """For each layer W [D, G*H, I], R [D, G*H, H] and B [D, 2*G*H] (None without biases) of its ONNX node.

    A GRU's node must have ``linear_before_reset=1``, an RNN's with relu ``activations=["Relu"]``, once a direction.

    Raises:
        TypeError: for something else than an LSTM, GRU or RNN module.
        ValueError: for a variant of a cell, or a projected LSTM. (``torch.onnx.export`` can do more than reorder, and
            takes that one.)
    """
    stack = (node_weights(layer) for layer in _unprojected(module))
    return [(_array(w), _array(r), None if b is None else _array(b)) for w, r, b in stack]


_BY_ARGUMENT = " (by the argument nonlinearity)"


def _keras_arrays(layer: Any, nonlinearity: str) -> Sequence[Any]:
    """The arrays of a Keras layer, once it is seen to compute what a module here does."""
    if isinstance(layer, Sequence):
        return layer
    if not (hasattr(layer, "get_weights") and hasattr(layer, "get_config")):
        raise TypeError(f"expected Keras layers or lists of their weights, got {type(layer).__name__}")
    kind, config = type(layer).__name__, layer.get_config()
    if kind != "Bidirectional":
        _check_keras(kind, config, nonlinearity)
    elif config["merge_mode"] != "concat":
        raise ValueError(f"Bidirectional must have merge_mode='concat', got {config['merge_mode']!r}")
    else:
        for direction in (config["layer"], config.get("backward_layer")):
            if direction:  # the second one only where it was made apart
                backwards = direction is not config["layer"]
                _check_keras(direction["class_name"], direction["config"], nonlinearity, backwards)
    arrays: Sequence[Any] = layer.get_weights()
    return arrays


def _check_keras(kind: str, config: Mapping[str, Any], nonlinearity: str, backwards: bool = False) -> None:
    gated = {"activation": "tanh", "recurrent_activation": "sigmoid"}
    forms: dict[str, dict[str, Any]] = {
        "LSTM": gated,
        "GRU": {**gated, "reset_after": True},
        "SimpleRNN": {"activation": nonlinearity},
    }
    if kind not in forms:
        raise TypeError(
            f"expected LSTM, GRU, SimpleRNN or Bidirectional of one, or the list of its weights, got {kind}"
        )
    for name, wanted in {**forms[kind], "go_backwards": backwards}.items():
        if config[name] != wanted:
            by = _BY_ARGUMENT if kind == "SimpleRNN" and name == "activation" else ""
            raise ValueError(f"{kind} must have {name}={wanted!r}{by}, got {config[name]!r}")


def _keras_layer(arrays: Sequence[Any]) -> Layer:
    count = len(arrays)
    if count not in (2, 3, 4, 6):
        raise ValueError(f"expected kernel, recurrent_kernel and perhaps bias, once or twice, got {count} arrays")
    each = count if count < 4 else count // 2
    return [_keras_direction(*map(_tensor, arrays[i : i + each])) for i in range(0, count, each)]


def _keras_direction(kernel: Tensor, recurrent: Tensor, bias: Tensor | None = None) -> Weights:
    number = gates_of(recurrent.t()) if recurrent.dim() == 2 else 0
    rows = number * recurrent.shape[0]
    if number == 3 and bias is not None and bias.shape == (rows,):
        raise ValueError("GRU must have reset_after=True, with a bias [2, 3*H]: here r is applied after the product")
    biased = bias is None or bias.shape == ((2, rows) if number == 3 else (rows,))
    if not number or kernel.dim() != 2 or kernel.shape[1] != rows or not biased:
        given = [list(array.shape) for array in (kernel, recurrent, bias) if array is not None]
        raise ValueError(f"expected kernel [I, G*H], recurrent_kernel [H, G*H], bias [G*H] (GRU [2, 3*H]), got {given}")
    b_ih = b_hh = None
    if bias is not None:
        b_ih, b_hh = bias if number == 3 else (bias, torch.zeros_like(bias))
    return reordered(Weights(kernel.t(), recurrent.t(), b_ih, b_hh, None), KERAS, TORCH)


def _onnx_layer(w: Any, r: Any, b: Any = None, p: Any = None) -> Layer:
    if p is not None:
        raise ValueError("LSTM nodes must have no peepholes P")
    if w is None or r is None:
        raise ValueError("W and R must be arrays; of a graph that computes them, fold the constants first")
    w, r, b = _tensor(w), _tensor(r), None if b is None else _tensor(b)
    fits = w.dim() == r.dim() == 3 and len(w) in (1, 2) and w.shape[:2] == r.shape[:2] and gates_of(r[0])
    if not fits or (b is not None and b.shape != (len(w), 2 * w.shape[1])):
        given = [list(array.shape) for array in (w, r, b) if array is not None]
        raise ValueError(f"expected W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H], got {given}")
    biases = [(None, None)] * len(w) if b is None else [both.chunk(2) for both in b]
    directions = zip(w, r, biases, strict=True)
    return [reordered(Weights(w_ih, w_hh, b_ih, b_hh, None), ONNX, TORCH) for w_ih, w_hh, (b_ih, b_hh) in directions]


def _unprojected(module: RNNBase) -> list[Layer]:
    if not isinstance(module, RNNBase):
        raise TypeError(f"expected an LSTM, GRU or RNN module, got {type(module).__name__}")
    if module.proj_size:
        raise ValueError(f"no layer of Keras or node of ONNX has a projection (proj_size={module.proj_size})")
    if getattr(module, "variant", None) is not None:
        raise ValueError("only torch's own cells are written: no peepholes, coupled gates or other activations")
    if getattr(module, "connection", None) is not None:
        raise ValueError(f"a stack of layers has no connections between them (connection={module.connection!r})")
    return layers_of(module)


def _tensor(array: Any) -> Tensor:
    # Not as_tensor, which warns of arrays that are not writable.
    return array if isinstance(array, Tensor) else torch.tensor(array)


def _array(tensor: Tensor) -> Any:
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return tensor.clone(memory_format=torch.contiguous_format).numpy()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # onnx.helper gives bytes
