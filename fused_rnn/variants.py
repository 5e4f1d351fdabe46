"""Variants of the cells by the names that users give them."""

from __future__ import annotations

from typing import Any

from . import checks
from .network import RNN_RELU, RNN_TANH
from .reference import Activation, Variant

__all__ = ["describe", "of_nonlinearity", "variant"]

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


def describe(variant: Variant | None) -> dict[str, Any]:
    """The arguments that :func:`variant` was given, those that are not the default."""
    if variant is None:
        return {}
    every = {"gate_activation": variant.gate, "activation": variant.state}
    named: dict[str, Any] = {name: _NAMES[kind] for name, kind in every.items() if kind}
    flags = {"peephole": variant.peephole, "coupled_gates": variant.coupled, "layer_norm": variant.layer_norm}
    named |= {name: True for name, flag in flags.items() if flag}
    return named | ({"reset_after": False} if variant.reset_before else {})
