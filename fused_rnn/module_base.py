"""What ``LSTM``, ``GRU`` and ``RNN`` have in common: parameters, those of variants too, and the way to the network.

The base class is torch's ``RNNBase`` (arguments, parameters and their names, initial values, repr, pickling), not
``nn.LSTM``: Dynamo refuses instances of that. Nothing here looks a class of torch's up when it runs, so the modules may
stand in torch's place.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.rnn import RNNBase

from .network import GRU, LSTM, RNN_RELU, RNN_TANH, sequence
from .reference import Variant
from .variants import describe

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

    def __init__(
        self, mode: str, *args: Any, recompute: bool = False, variant: Variant | None = None, **kwargs: Any
    ) -> None:
        super().__init__(mode, *args, **kwargs)
        if recompute:
            self.recompute = True
        if variant is not None:
            self.variant = variant
            if variant.coupled:
                self._leave_first_gate_out()
            rows, hidden = len(self._parameters["weight_ih_l0"]), self.hidden_size  # type: ignore[arg-type]
            if variant.peephole:
                self._add_weights("weight_ch", rows - hidden)
            if variant.layer_norm:
                self._add_weights("weight_ln_ih", rows)
                self._add_weights("weight_ln_hh", rows)
                if mode == "LSTM":
                    self._add_weights("weight_ln_ch", hidden)
                    self._add_weights("bias_ln_ch", hidden)

    def _leave_first_gate_out(self) -> None:
        for name, weight in list(self._parameters.items()):
            if weight is not None and len(weight) == 4 * self.hidden_size:
                self.register_parameter(name, nn.Parameter(weight.detach()[self.hidden_size :].clone()))
        self._init_flat_weights()

    def _add_weights(self, name: str, size: int) -> None:
        """One more parameter at the end of each layer and direction, set as ``reset_parameters`` does."""
        bound = self.hidden_size**-0.5
        self._flat_weights_names = []
        like: Tensor = self._parameters["weight_ih_l0"]  # type: ignore[assignment]
        for names in self._all_weights:
            added = name + names[0].removeprefix("weight_ih")
            self.register_parameter(added, nn.Parameter(nn.init.uniform_(like.new_empty(size), -bound, bound)))
            self._reset_if_norm(added)
            names.append(added)
            for each in names:  # in the order of the list
                self._parameters[each] = self._parameters.pop(each)
            self._flat_weights_names += names
        self._init_flat_weights()

    def _reset_if_norm(self, name: str) -> None:
        if name.startswith(("weight_ln", "bias_ln")):
            nn.init.constant_(self._parameters[name], float(name.startswith("weight")))  # type: ignore[arg-type]

    def reset_parameters(self) -> None:
        """All parameters anew, as ``torch.nn`` draws them; of layer normalisation gains of 1 and shifts of 0."""
        super().reset_parameters()
        for name in self._parameters:
            self._reset_if_norm(name)

    def flatten_parameters(self) -> None:
        if self.variant is None:  # no other goes to cuDNN
            super().flatten_parameters()

    def extra_repr(self) -> str:
        own = {"recompute": True} if self.recompute else {}
        own |= self._variant_arguments()
        return super().extra_repr() + "".join(f", {name}={value!r}" for name, value in own.items())

    def _variant_arguments(self) -> dict[str, Any]:
        return describe(self.variant)

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
        if type(input) is not Tensor and isinstance(input, Proxy):
            options = {"lengths": lengths, "cells": cells or None}
            options |= {} if reset is None else {"reset": reset, "reset_to": reset_to}
            return _as_node(self, input, hx, {name: value for name, value in options.items() if value is not None})
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
            self.variant,
            lengths,
            cells,
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


def _as_node(module: torch.nn.Module, input: Proxy, hx: Any, options: dict[str, Any]) -> Proxy:
    """One node of a ``torch.fx`` graph, which its tracer makes by itself only of modules that torch defines."""
    tracer: Any = input.tracer
    path = tracer.path_of_module(module)
    return tracer.create_proxy("call_module", path, (input,) if hx is None else (input, hx), options)
