"""Variants of the cells by the names that users give them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from . import checks
from .dropout import Drops
from .network import RNN_RELU, RNN_TANH
from .reference import Activation, Variant

__all__ = ["REGULARISATION", "describe", "of_nonlinearity", "of_ratios", "ratios", "regularised", "variant"]

_ACTIVATIONS = {kind.name.lower(): kind for kind in Activation if kind is not Activation.OWN}
_NAMES: dict[int, str] = {kind: name for name, kind in _ACTIVATIONS.items()}


def _activation(argument: str, given: str, own: Activation) -> Activation:
    if given not in _ACTIVATIONS:
        raise checks.activation(argument, _ACTIVATIONS, given)
    kind = _ACTIVATIONS[given]
    return Activation.OWN if kind is own else kind


def variant(
    gate_activation: str = "sigmoid",
    activation: str = "tanh",
    *,
    peephole: bool = False,
    coupled_gates: bool = False,
    reset_after: bool = True,
    layer_norm: bool = False,
) -> Variant | None:
    """Of an LSTM or, with the first and the last two, a GRU; None for torch's own.

    Raises:
        ValueError: for a name that no activation has; for options that are not there together.
        TypeError: for an option that is no bool.
    """
    own = peephole is False and coupled_gates is False and reset_after is True and layer_norm is False
    if own and gate_activation == "sigmoid" and activation == "tanh":
        return None  # what functions are called with, mostly
    flags = {"peephole": peephole, "coupled_gates": coupled_gates, "reset_after": reset_after, "layer_norm": layer_norm}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise checks.not_a_bool(name, flag)
    made = Variant(
        _activation("gate_activation", gate_activation, Activation.SIGMOID),
        _activation("activation", activation, Activation.TANH),
        peephole,
        coupled_gates,
        not reset_after,
        layer_norm,
    )
    if layer_norm and not reset_after:
        raise checks.norm_of_reset_before()
    return made if any(made) else None


def of_nonlinearity(name: str, layer_norm: bool = False) -> tuple[int, Variant | None]:
    """The cell of an RNN with this activation, and its variant where torch has none of the kind.

    Raises:
        ValueError: for a name that no activation has.
        TypeError: for a ``layer_norm`` that is no bool.
    """
    if not isinstance(layer_norm, bool):
        raise checks.not_a_bool("layer_norm", layer_norm)
    if name not in _ACTIVATIONS:
        raise checks.nonlinearity(_ACTIVATIONS, name)
    kind = Activation.OWN if name in ("tanh", "relu") else _ACTIVATIONS[name]
    made = Variant(state=kind, layer_norm=layer_norm)
    return RNN_RELU if name == "relu" else RNN_TANH, made if any(made) else None


# Arguments of modules and functions, and the fields that hold them.
_OF_LOOPS = {name: name for name in ("recurrent_dropout", "zoneout_h", "zoneout_c")}
_BOUNDS = {"clip_grad_value": "clip_value", "clip_grad_norm": "clip_norm"}
_OF_CALLS = {"input_dropout": "input", "variational_dropout": "variational", "weight_dropout": "weight"}
REGULARISATION = frozenset({*_OF_LOOPS, *_OF_CALLS, *_BOUNDS})


def regularised(variant: Variant | None, given: Mapping[str, Any], lstm: bool) -> tuple[Variant | None, Drops | None]:
    """``variant`` with what of the regularisation ``given`` by name belongs to the loops, and what belongs around them;
    None where that is nothing.

    Raises:
        ValueError: for a rate that is no probability, a bound that is not positive, or ``zoneout_c`` without an LSTM.
        TypeError: for another name, or a ``variational_dropout`` that is no bool.
    """
    for name, value in given.items():
        if name not in REGULARISATION:
            raise checks.unexpected(name)
        if name == "variational_dropout":
            if not isinstance(value, bool):
                raise checks.not_a_bool(name, value)
        elif name in _BOUNDS:
            if value is not None and (not _is_number(value) or not 0 < value < math.inf):
                raise checks.bound(name)
        elif not _is_number(value) or not 0 <= value <= 1:
            raise checks.probability(name)
    if "zoneout_c" in given and not lstm:
        raise checks.lstm_only("zoneout_c")
    loops: dict[str, Any] = {_OF_LOOPS[name]: float(value) for name, value in given.items() if name in _OF_LOOPS}
    loops |= {_BOUNDS[name]: float(value or 0) for name, value in given.items() if name in _BOUNDS}
    calls = {_OF_CALLS[name]: value for name, value in given.items() if name in _OF_CALLS}
    made, drops = (variant or Variant())._replace(**loops), Drops(**calls)
    return made if any(made) else None, drops if any(drops) else None


def ratios(variant: Variant) -> tuple[tuple[int, int], ...]:
    """Its numbers as fractions, exactly. Dynamo takes integers of a module for constants, but floats, where shapes are
    dynamic, for inputs of the graph, which no layer after the first can have."""
    return tuple(float(number).as_integer_ratio() for number in variant)


def of_ratios(fractions: tuple[tuple[int, int], ...]) -> Variant:
    """The inverse of :func:`ratios`."""
    return Variant(*(n if d == 1 else n / d for n, d in fractions))  # type: ignore[arg-type]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def describe(variant: Variant | None, drops: Drops | None = None) -> dict[str, Any]:
    """The arguments that :func:`variant` and :func:`regularised` were given, those that are not the default."""
    variant, drops = variant or Variant(), drops or Drops()
    every = {"gate_activation": variant.gate, "activation": variant.state}
    named: dict[str, Any] = {name: _NAMES[kind] for name, kind in every.items() if kind}
    flags = {"peephole": variant.peephole, "coupled_gates": variant.coupled, "layer_norm": variant.layer_norm}
    named |= {name: True for name, flag in flags.items() if flag}
    named |= {"reset_after": False} if variant.reset_before else {}
    held = {name: getattr(drops, field) for name, field in _OF_CALLS.items()}
    held |= {name: getattr(variant, field) for name, field in (_OF_LOOPS | _BOUNDS).items()}
    return named | {name: value for name, value in held.items() if value}
