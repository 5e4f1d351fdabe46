"""Weights from and to Keras layers and ONNX nodes, gates reordered; neither library need be installed. ::

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
from .onnx_forms import Named, attributes, coupled, is_symmetric, node_weights, peepholes, read, shifts, written
from .onnx_forms import activations as onnx_activations
from .reference import Activation, Cell, Variant, Weights
from .variants import of_nonlinearity, variant

__all__ = ["from_keras", "from_onnx", "onnx_attributes", "to_keras", "to_onnx"]


def from_keras(*layers: Any, nonlinearity: str = "tanh", reset_after: bool = True) -> dict[str, Tensor]:
    """The ``state_dict`` of a stack of Keras layers, the lowest first.

    Args:
        layers: each an LSTM, GRU, SimpleRNN or Bidirectional layer, whose configuration is checked; or the list that
            its ``get_weights()`` gives, all else being taken on trust: kernel [I, G*H], recurrent_kernel [H, G*H] and,
            if there is one, bias [G*H] (a GRU's [2, 3*H] if r comes after the product); for Bidirectional those of both
            directions.
        nonlinearity: of the ``RNN`` the weights are for, "tanh" or "relu".
        reset_after: of the ``GRU`` the weights are for.

    Raises:
        TypeError: for something else than a layer or its weights.
        ValueError: for arrays of other shapes, layers that do not fit on each other, a GRU of another
            ``reset_after``, other activations, ``go_backwards``, another ``merge_mode`` than "concat".
    """
    return state_dict([_keras_layer(_keras_arrays(layer, nonlinearity, reset_after), reset_after) for layer in layers])


def to_keras(module: RNNBase) -> list[list[Any]]:
    """For each layer what ``set_weights`` of its Keras layer takes: kernel [I, G*H], recurrent_kernel [H, G*H] and, if
    ``module`` has biases, bias [G*H], the sum of b_ih and b_hh (a GRU's [2, 3*H], not summed, unless it has
    ``reset_after=False``); of two directions both.

    Raises:
        TypeError: for something else than an LSTM, GRU or RNN module.
        ValueError: for a projected LSTM, connections between layers, or a variant of a cell other than
            ``reset_after=False``.
    """
    own = _variant(module)
    if own is not None and own.without("reset_before") is not None:
        raise ValueError(
            "only torch's own cells are written: no peepholes, coupled gates, layer normalisation, zoneout, other "
            "activations"
        )

    def arrays(weights: Weights) -> list[Any]:
        w_ih, w_hh, b_ih, b_hh, *_ = reordered(weights, TORCH, KERAS)
        tensors = [w_ih.t(), w_hh.t()]
        if b_ih is not None and b_hh is not None:
            tensors.append(torch.stack([b_ih, b_hh]) if gates_of(w_hh) == 3 and own is None else b_ih + b_hh)
        return [_array(tensor) for tensor in tensors]

    return [[array for weights in layer for array in arrays(weights)] for layer in _unprojected(module)]


def from_onnx(
    *layers: Sequence[Any],
    nonlinearity: str = "tanh",
    gate_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = True,
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
        layers: for each W [D, G*H, I], R [D, G*H, H], and B [D, 2*G*H] and P [D, 3*H] (peepholes of an LSTM), either
            of which may be None or left out.
        nonlinearity: of the ``RNN`` the weights are for.
        gate_activation, activation: of the ``LSTM`` or ``GRU``.
        reset_after: of the ``GRU``.
        linear_before_reset, ...: the attributes of these nodes, with ONNX's own defaults, so that for a GRU either
            ``linear_before_reset=1`` or ``reset_after=False`` has to be given. ``hidden_size`` and ``layout`` change
            nothing here.

    With P the state is for ``LSTM(peephole=True)``, with ``input_forget=1`` for ``coupled_gates=True``: f = 1 - i, as
    ONNX Runtime computes it, is their i = 1 - f after the signs of the gate's weights are turned.

    Raises:
        ValueError: for arrays of other shapes, layers that do not fit on each other, a GRU whose
            ``linear_before_reset`` is not ``reset_after``, other activations than those that are named, a hard
            tanh, ``clip``, ``input_forget`` with gates that are not sigmoids, nodes of the reverse direction alone.
    """
    stack = [_onnx_layer(*layer) for layer in layers]
    state = state_dict(stack)
    number = gates_of(stack[0][0].w_hh)
    if number == 1:
        cell, own = of_nonlinearity(nonlinearity)
    else:
        cell, own = Cell.LSTM if number == 4 else Cell.GRU, variant(gate_activation, activation)
    _check_activations(
        cell, own, read(list(map(_text, activations or _STANDARD[number])), activation_alpha, activation_beta)
    )
    if number == 3 and bool(linear_before_reset) != reset_after:
        raise ValueError(
            f"GRU nodes must have linear_before_reset={int(reset_after)}{_BY_RESET_AFTER}, got {linear_before_reset}"
        )
    if clip is not None:
        raise ValueError(f"nodes must not clip, got clip={clip}")
    if _text(direction) == "reverse":
        raise ValueError("nodes must be forward or bidirectional, got direction='reverse'")
    if not input_forget:
        return state
    if number != 4 or not is_symmetric(own):
        raise ValueError("nodes with input_forget=1 must be LSTMs whose gates are sigmoids or hard sigmoids")
    return state_dict([[coupled(weights) for weights in layer] for layer in stack])


def to_onnx(module: RNNBase) -> list[tuple[Any, ...]]:
    """For each layer W [D, G*H, I], R [D, G*H, H] and B [D, 2*G*H] (None without biases) of its ONNX node, and with
    peepholes P [D, 3*H]. The attributes that the node must have: :func:`onnx_attributes`.

    Coupled gates are written as those of an LSTM, i with f's rows, negated, so that i = 1 - f with ``input_forget`` and
    without.

    Raises:
        TypeError: for something else than an LSTM, GRU or RNN module.
        ValueError: for a projected LSTM, connections between layers or a hard tanh. (``torch.onnx.export`` can do more
            than reorder, and takes them.)
        NotImplementedError: for a variant that no node computes.
    """
    onnx_attributes(module)  # for what it refuses
    own = _variant(module)
    nodes = []
    for layer in _unprojected(module):
        weights = [written(each, own) for each in layer]
        tensors = [*node_weights(weights), *([peepholes(weights)] if own is not None and own.peephole else [])]
        nodes.append(tuple(None if tensor is None else _array(tensor) for tensor in tensors))
    return nodes


def onnx_attributes(module: RNNBase) -> dict[str, Any]:
    """The attributes of the ONNX nodes that have the weights of :func:`to_onnx`: ``hidden_size``, and of ``direction``,
    ``linear_before_reset``, ``activations``, ``activation_alpha`` and ``activation_beta`` what is needed.

    Errors as :func:`to_onnx`.
    """
    _unprojected(module)
    own = _variant(module)
    if shifts(own):
        raise ValueError(_NO_HARD_TANH)
    return attributes(Cell[module.mode], own, 1 + module.bidirectional, module.hidden_size)


_BY_ARGUMENT = " (by the argument nonlinearity)"
_BY_RESET_AFTER = " (by the argument reset_after)"
_STANDARD = {4: ["Sigmoid", "Tanh", "Tanh"], 3: ["Sigmoid", "Tanh"], 1: ["Tanh"]}  # of nodes that tell none
_NO_HARD_TANH = "nodes have no hard tanh, and weights alone make none of what they have"


def _check_activations(cell: int, own: Variant | None, given: Sequence[Named]) -> None:
    if own is not None and Activation.HARD_TANH in (own.gate, own.state):
        raise ValueError(_NO_HARD_TANH)
    ours = onnx_activations(cell, own)

    def plain(named: Sequence[Named]) -> list[tuple[Any, ...]]:
        # float32 is how a file keeps the numbers
        return [(each.name.lower(), *(n and round(n, 6) for n in each[1:])) for each in named]

    if plain(given) not in (plain(ours), plain([*ours, *ours])):
        arguments = "gate_activation and activation" if cell in (Cell.LSTM, Cell.GRU) else "nonlinearity"
        wanted, got = (list(map(str, named)) for named in (ours, given))
        raise ValueError(f"nodes must have activations={wanted} (by the argument {arguments}), got {got}")


def _keras_arrays(layer: Any, nonlinearity: str, reset_after: bool) -> Sequence[Any]:
    """The arrays of a Keras layer, once it is seen to compute what a module here does."""
    if isinstance(layer, Sequence):
        return layer
    if not (hasattr(layer, "get_weights") and hasattr(layer, "get_config")):
        raise TypeError(f"expected Keras layers or lists of their weights, got {type(layer).__name__}")
    kind, config = type(layer).__name__, layer.get_config()
    if kind != "Bidirectional":
        _check_keras(kind, config, nonlinearity, reset_after)
    elif config["merge_mode"] != "concat":
        raise ValueError(f"Bidirectional must have merge_mode='concat', got {config['merge_mode']!r}")
    else:
        forward = config["layer"]
        backward = config.get("backward_layer") or forward  # where it was made apart
        if backward["class_name"] != forward["class_name"]:
            raise ValueError(
                f"Bidirectional must have one kind of layer, got {forward['class_name']} and {backward['class_name']}"
            )
        for direction in (forward, backward):
            apart = direction is not forward
            _check_keras(direction["class_name"], direction["config"], nonlinearity, reset_after, apart)
    if not layer.built:
        raise ValueError(f"{kind} has no weights yet: build it, or call it once")
    arrays: Sequence[Any] = layer.get_weights()
    return arrays


def _check_keras(
    kind: str, config: Mapping[str, Any], nonlinearity: str, reset_after: bool, backwards: bool = False
) -> None:
    gated = {"activation": "tanh", "recurrent_activation": "sigmoid"}
    forms: dict[str, dict[str, Any]] = {
        "LSTM": gated,
        "GRU": {**gated, "reset_after": reset_after},
        "SimpleRNN": {"activation": nonlinearity},
    }
    if kind not in forms:
        raise TypeError(
            f"expected LSTM, GRU, SimpleRNN or Bidirectional of one, or the list of its weights, got {kind}"
        )
    for name, wanted in {**forms[kind], "go_backwards": backwards}.items():
        if config[name] != wanted:
            by = _BY_ARGUMENT if kind == "SimpleRNN" and name == "activation" else ""
            by = _BY_RESET_AFTER if name == "reset_after" else by
            raise ValueError(f"{kind} must have {name}={wanted!r}{by}, got {config[name]!r}")


def _keras_layer(arrays: Sequence[Any], reset_after: bool) -> Layer:
    count = len(arrays)
    if count not in (2, 3, 4, 6):
        raise ValueError(f"expected kernel, recurrent_kernel and perhaps bias, once or twice, got {count} arrays")
    each = count if count < 4 else count // 2
    return [_keras_direction(reset_after, *map(_tensor, arrays[i : i + each])) for i in range(0, count, each)]


def _keras_direction(reset_after: bool, kernel: Tensor, recurrent: Tensor, bias: Tensor | None = None) -> Weights:
    number = gates_of(recurrent.t()) if recurrent.dim() == 2 else 0
    rows = number * recurrent.shape[0]
    two = number == 3 and reset_after
    if number == 3 and bias is not None and bias.shape == ((rows,) if two else (2, rows)):
        raise ValueError(
            f"GRU must have reset_after={reset_after}{_BY_RESET_AFTER}, with a bias {'[2, 3*H]' if two else '[3*H]'}, "
            f"got {list(bias.shape)}"
        )
    biased = bias is None or bias.shape == ((2, rows) if two else (rows,))
    if not number or kernel.dim() != 2 or kernel.shape[1] != rows or not biased:
        given = [list(array.shape) for array in (kernel, recurrent, bias) if array is not None]
        raise ValueError(f"expected kernel [I, G*H], recurrent_kernel [H, G*H], bias [G*H] (GRU [2, 3*H]), got {given}")
    b_ih = b_hh = None
    if bias is not None:
        b_ih, b_hh = bias if two else (bias, torch.zeros_like(bias))
    return reordered(Weights(kernel.t(), recurrent.t(), b_ih, b_hh, None), KERAS, TORCH)


def _onnx_layer(w: Any, r: Any, b: Any = None, p: Any = None) -> Layer:
    if w is None or r is None:
        raise ValueError("W and R must be arrays; of a graph that computes them, fold the constants first")
    w, r, b = _tensor(w), _tensor(r), None if b is None else _tensor(b)
    fits = w.dim() == r.dim() == 3 and len(w) in (1, 2) and w.shape[:2] == r.shape[:2] and gates_of(r[0])
    if not fits or (b is not None and b.shape != (len(w), 2 * w.shape[1])):
        given = [list(array.shape) for array in (w, r, b) if array is not None]
        raise ValueError(f"expected W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H], got {given}")
    biases = [(None, None)] * len(w) if b is None else [both.chunk(2) for both in b]
    each: Any = [None] * len(w)
    if p is not None:
        p = _tensor(p)
        if gates_of(r[0]) != 4 or p.shape != (len(w), 3 * r.shape[2]):
            raise ValueError(f"expected P [D, 3*H] of an LSTM, got {list(p.shape)} beside R {list(r.shape)}")
        p_i, p_o, p_f = p.chunk(3, 1)
        each = torch.cat([p_i, p_f, p_o], 1)
    return [
        reordered(Weights(w_ih, w_hh, b_ih, b_hh, None, w_ch), ONNX, TORCH)
        for w_ih, w_hh, (b_ih, b_hh), w_ch in zip(w, r, biases, each, strict=True)
    ]


def _variant(module: RNNBase) -> Variant | None:
    """As far as outputs show it."""
    own = getattr(module, "variant", None)
    return None if own is None else own.of_outputs()


def _unprojected(module: RNNBase) -> list[Layer]:
    if not isinstance(module, RNNBase):
        raise TypeError(f"expected an LSTM, GRU or RNN module, got {type(module).__name__}")
    if module.proj_size:
        raise ValueError(f"no layer of Keras or node of ONNX has a projection (proj_size={module.proj_size})")
    if getattr(module, "connection", None) is not None:
        raise ValueError(f"a stack of layers has no connections between them (connection={module.connection!r})")
    return layers_of(module)


def _tensor(array: Any) -> Tensor:
    if isinstance(array, Tensor):
        return array
    if str(getattr(array, "dtype", "")) == "bfloat16":  # of ml_dtypes, which torch does not know
        return torch.tensor(array.astype("float32")).bfloat16()
    return torch.tensor(array)  # not as_tensor, which warns of arrays that are not writable


def _array(tensor: Tensor) -> Any:
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return tensor.clone(memory_format=torch.contiguous_format).numpy()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # onnx.helper gives bytes
