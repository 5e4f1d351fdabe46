"""Parameters of variants, on modules that have been given those of torch's cells."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["add_norms", "add_weights", "leave_first_gate_out", "reset_norms"]


def leave_first_gate_out(module: Any) -> None:
    """Of all parameters of an LSTM that have rows for four gates."""
    for name, weight in list(module._parameters.items()):
        if weight is not None and len(weight) == 4 * module.hidden_size:
            module.register_parameter(name, nn.Parameter(weight.detach()[module.hidden_size :].clone()))
    module._init_flat_weights()


def add_weights(module: Any, name: str, *shape: int) -> None:
    """One more parameter at the end of each layer and direction, drawn as the others are."""
    bound = module.hidden_size**-0.5
    module._flat_weights_names = []
    like = module._parameters["weight_ih_l0"]
    for names in module._all_weights:
        suffix = names[0].removeprefix("weight_ih")
        added = like.new_empty(shape)
        module.register_parameter(name + suffix, nn.Parameter(nn.init.uniform_(added, -bound, bound)))
        names.append(name + suffix)
        for each in names:  # in the order of the list
            module._parameters[each] = module._parameters.pop(each)
        module._flat_weights_names += names
    module._init_flat_weights()


def add_norms(module: Any) -> None:
    """Gains of layer normalisation, and an LSTM's shift of c."""
    rows, hidden = len(module._parameters["weight_ih_l0"]), module.hidden_size
    add_weights(module, "weight_ln_ih", rows)
    add_weights(module, "weight_ln_hh", rows)
    if module.mode == "LSTM":
        add_weights(module, "weight_ln_ch", hidden)
        add_weights(module, "bias_ln_ch", hidden)
    reset_norms(module)


def reset_norms(module: Any) -> None:
    """Gains of 1 and shifts of 0, where there are any."""
    for name, weight in module._parameters.items():
        if name.startswith(("weight_ln", "bias_ln")):
            nn.init.constant_(weight, float(name.startswith("weight")))
