"""What ``LSTM``, ``GRU`` and ``RNN`` have in common: parameters, those of variants too, and the way to the network.

The base class is torch's ``RNNBase`` (arguments, parameters and their names, initial values, repr, pickling), not
``nn.LSTM``: Dynamo refuses instances of that. Nothing here looks a class of torch's up when it runs, so the modules may
stand in torch's place.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.modules.rnn import RNNBase

from . import checks, connections
from .dropout import Drops
from .graph_nodes import as_node, is_proxy
from .network import GRU, LSTM, RNN_RELU, RNN_TANH, sequence
from .parameters import add_norms, add_weights, leave_first_gate_out, reset_norms
from .reference import Variant
from .variants import REGULARISATION, describe, of_ratios, ratios, regularised

__all__ = ["SequenceModule"]

_CELLS = {"LSTM": LSTM, "GRU": GRU, "RNN_TANH": RNN_TANH, "RNN_RELU": RNN_RELU}
_is_compiling = torch.compiler.is_compiling


class SequenceModule(RNNBase):
    """What the three have in common: everything but their arguments and documentation."""

    _flat_weights: list[Any]
    _flat_weights_names: list[str]
    # Instances have these where they are not the default; all their other attributes are torch's.
    recompute: bool = False
    variant: Variant | None = None
    variant_ratios: tuple[tuple[int, int], ...] = ()  # the same for graphs
    drops: Drops | None = None
    connection: str | None = None
    recorder: Any = None  # while `diagnostics` looks at it: what stands for each layer (`recording.Recorder`)

    def __init__(
        self,
        mode: str,
        *args: Any,
        recompute: bool = False,
        variant: Variant | None = None,
        connection: str | None = None,
        **kwargs: Any,
    ) -> None:
        connections.check(connection)
        given = {name: kwargs.pop(name) for name in REGULARISATION.intersection(kwargs)}
        super().__init__(mode, *args, **kwargs)
        if given:
            variant, drops = regularised(variant, given, mode == "LSTM")
            if drops is not None:
                self.drops = drops
        if recompute:
            self.recompute = True
        if variant is not None:
            self.variant, self.variant_ratios = variant, ratios(variant)
            if variant.coupled:
                leave_first_gate_out(self)
            if variant.peephole:
                add_weights(self, "weight_ch", (2 if variant.coupled else 3) * self.hidden_size)
            if variant.layer_norm:
                add_norms(self)
        if connection is not None:
            self.connection = connection
            connections.add_parameters(self, connection)
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """All anew, as ``torch.nn`` draws them; of layer normalisation gains of 1 and shifts of 0."""
        super().reset_parameters()
        reset_norms(self)
        if self.connection == "highway":
            for bias in connections.highway_biases(self):
                nn.init.constant_(bias, connections.HIGHWAY_BIAS)

    def flatten_parameters(self) -> None:
        if self.variant is None and self.connection is None:  # no other goes to cuDNN
            super().flatten_parameters()

    def __getstate__(self) -> dict[str, Any]:
        """Without what looks at this very module: a copy would be recorded for good."""
        state: dict[str, Any] = super().__getstate__()
        state.pop("recorder", None)
        return state

    def extra_repr(self) -> str:
        own: dict[str, Any] = {"recompute": True} if self.recompute else {}
        own |= self._variant_arguments()
        if self.connection is not None:
            own["connection"] = self.connection
        return super().extra_repr() + "".join(f", {name}={value!r}" for name, value in own.items())

    def __prepare_scriptable__(self) -> NoReturn:
        raise checks.scripted()

    def _variant_arguments(self) -> dict[str, Any]:
        return describe(self.variant, self.drops)

    def forward(
        self,
        input: Any,
        hx: Any = None,
        *,
        reset: Any = None,
        reset_to: str = "zero",
        lengths: Any = None,
        cells: bool = False,
    ) -> Any:
        if is_proxy(input):
            options = {"lengths": lengths, "cells": cells or None}
            options |= {} if reset is None else {"reset": reset, "reset_to": reset_to}
            return as_node(self, input, hx, {name: value for name, value in options.items() if value is not None})
        return sequence(
            _CELLS[self.mode],
            input,
            hx,
            self._current_weights(),
            self.input_size,
            self.hidden_size,
            self.proj_size,
            self.num_layers,
            2 if self.bidirectional else 1,
            self.batch_first,
            self.dropout,
            self.training,
            self.recompute,
            reset,
            reset_to,
            of_ratios(self.variant_ratios) if self.variant_ratios and _is_compiling() else self.variant,
            lengths,
            cells,
            self.connection,
            self.drops,
            self.recorder,
        )

    def _current_weights(self) -> Sequence[Any]:
        """The weights as they are now, in the order of ``_flat_weights``, which is a cache of them.

        A parameter that was deleted lives on in the cache, as in torch.
        """
        flat, parameters = self._flat_weights, self._parameters
        if _is_compiling():  # a cache that changes is a side effect to trace around
            return [getattr(self, name, old) for name, old in zip(self._flat_weights_names, flat, strict=True)]
        for name, weight in zip(self._flat_weights_names, flat, strict=True):
            if parameters.get(name) is not weight:  # replaced, parametrized, pruned, mapped or deleted
                return self._renewed_weights(flat)
        return flat

    def _renewed_weights(self, flat: Sequence[Any]) -> Sequence[Any]:
        """What torch's ``_update_flat_weights`` does, looking at each attribute as often as it does: some advance with
        every look, as spectral norm's iteration. But other threads may be here too, each with weights of a graph of
        its own, so the list is not read back from the module."""
        self._weights_have_changed()
        names = self._flat_weights_names
        current = [getattr(self, n) if hasattr(self, n) else old for n, old in zip(names, flat, strict=True)]
        self._flat_weights = current
        self._flat_weight_refs = [None if weight is None else weakref.ref(weight) for weight in current]
        self.flatten_parameters()
        return current
