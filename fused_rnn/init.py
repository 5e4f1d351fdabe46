"""Initial values for recurrent networks: functions that change a module in place, of this package or of ``torch.nn``::

    fused_rnn.init.orthogonal_(lstm)
    fused_rnn.init.forget_bias_(lstm, 1.0)
    fused_rnn.init.apply_(gru, "chrono", max_steps=500)  # by name

Each takes a module of recurrent layers (``LSTM``, ``GRU``, ``RNN``) or a cell (``LSTMCell``, ...), treats all layers
and directions alike, touches only the parameters it names, and returns the module. A ``generator`` makes random values
reproducible. A projected LSTM's W_hh is [4*H, P]: where H x H is said, read H x P. Equations and what they do are in
docs/initialisation.md.

Raises everywhere: TypeError for a module that is not recurrent or not of the cell asked for; ValueError for biases that
the module does not have, weights that are made of others (parametrized, pruned), or a number out of range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.rnn import RNNBase, RNNCellBase

from .layouts import TORCH

__all__ = ["apply_", "chrono_", "forget_bias_", "identity_", "orthogonal_"]

Module = TypeVar("Module", bound=nn.Module)


def _layers(module: nn.Module) -> Iterator[tuple[str, dict[str, Tensor], Tensor, int]]:
    """(the gates' letters, the layer's own parameters, W_hh, H) for each layer and direction."""
    if isinstance(module, RNNCellBase):
        suffixes = [""]
    elif isinstance(module, RNNBase):
        directions = ["", "_reverse"] if module.bidirectional else [""]
        suffixes = [f"_l{layer}{direction}" for layer in range(module.num_layers) for direction in directions]
    else:
        raise TypeError(f"expected an LSTM, GRU or RNN module, or a cell of one, got {type(module).__name__}")
    for suffix in suffixes:
        own = {name: getattr(module, name + suffix, None) for name in ("weight_ih", "bias_ih", "bias_hh")}
        recurrent = getattr(module, "weight_hh" + suffix)
        variant = getattr(module, "variant", None)
        coupled = variant is not None and variant.coupled
        gates = "fgo" if coupled else TORCH[recurrent.shape[0] // module.hidden_size]
        yield gates, {name: value for name, value in own.items() if value is not None}, recurrent, module.hidden_size


def _of(cells: str, module: nn.Module) -> list[tuple[str, dict[str, Tensor], Tensor, int]]:
    """The layers of a module whose gates are among ``cells``."""
    layers = list(_layers(module))
    if layers[0][0] not in cells.split():
        raise TypeError(f"{type(module).__name__} has no such gate")
    return layers


def _with_biases(cells: str, module: nn.Module) -> list[tuple[str, dict[str, Tensor], Tensor, int]]:
    layers = _of(cells, module)
    for _, own, _, _ in layers:
        if "bias_ih" not in own:
            raise ValueError("the module has no biases (bias=False)")
        _check_parameters(own["bias_ih"], own["bias_hh"])
    return layers


def _check_parameters(*weights: Tensor) -> None:
    """Before any of them is changed: whether what is written to them stays."""
    if not all(isinstance(weight, nn.Parameter) for weight in weights):
        raise ValueError(
            "a weight of the module is made of others, as parametrizations and pruning do: initialise it before"
        )


def _finite(**numbers: float) -> None:
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"expected a finite {name}, got {number}")


def _bias(own: dict[str, Tensor], gates: str, gate: str, hidden: int) -> tuple[Tensor, Tensor]:
    """The gate's parts of b_ih and b_hh, which only ever act as a sum."""
    first = gates.index(gate) * hidden
    return own["bias_ih"][first : first + hidden], own["bias_hh"][first : first + hidden]


def _set_sum(own: dict[str, Tensor], parts: tuple[Tensor, Tensor], value: Tensor) -> None:
    """Both together become ``value``: the first alone, or each half of it where the two biases are one parameter."""
    tied = own["bias_ih"] is own["bias_hh"]
    parts[0].copy_(value / 2 if tied else value)
    if not tied:
        parts[1].zero_()


@torch.no_grad()
def orthogonal_(module: Module, gain: float = 1.0, generator: Generator | None = None) -> Module:
    """Each gate's H x H part of W_hh becomes an orthogonal matrix times ``gain``: all its singular values are ``gain``.

    Saxe, McClelland and Ganguli 2014, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks". (``torch.nn.init.orthogonal_`` on the whole of W_hh would make it orthogonal across gates instead.)
    """
    _finite(gain=gain)
    layers = list(_layers(module))
    _check_parameters(*(recurrent for _, _, recurrent, _ in layers))
    for _, _, recurrent, hidden in layers:
        for part in recurrent.split(hidden):
            wide = part.float() if part.dtype.itemsize < 4 else part  # torch factorises no 16 bits
            part.copy_(nn.init.orthogonal_(wide, gain, generator=generator))
    return module


@torch.no_grad()
def identity_(
    module: Module, gain: float = 1.0, input_std: float | None = 1e-3, generator: Generator | None = None
) -> Module:
    """The IRNN: W_hh becomes the identity times ``gain``, biases 0, W_ih normal of ``input_std`` (None: kept).

    For plain RNNs, with relu as published: Le, Jaitly and Hinton 2015, "A simple way to initialize recurrent networks
    of rectified linear units".
    """
    _finite(gain=gain)
    if input_std is not None and not 0 <= input_std < math.inf:
        raise ValueError(f"expected an input_std of 0 or more, got {input_std}")
    layers = _of("h", module)
    _check_parameters(*(weight for _, own, recurrent, _ in layers for weight in (recurrent, *own.values())))
    for _, own, recurrent, _ in layers:
        nn.init.eye_(recurrent).mul_(gain)
        for name, value in own.items():
            if name != "weight_ih":
                value.zero_()
            elif input_std is not None:
                value.normal_(0, input_std, generator=generator)
    return module


@torch.no_grad()
def forget_bias_(module: Module, value: float = 1.0) -> Module:
    """The forget gate's bias of an LSTM (b_ih + b_hh) becomes ``value``: above 0 it remembers at first.

    Gers, Schmidhuber and Cummins 2000, "Learning to forget"; 1.0 as Jozefowicz, Zaremba and Sutskever 2015 advise.
    """
    _finite(value=value)
    for gates, own, _, hidden in _with_biases("ifgo fgo", module):
        parts = _bias(own, gates, "f", hidden)
        _set_sum(own, parts, torch.full_like(parts[0], value))
    return module


@torch.no_grad()
def chrono_(module: Module, max_steps: float, min_steps: float = 2.0, generator: Generator | None = None) -> Module:
    """Biases of the gates that remember, such that units forget over spans between ``min_steps`` and ``max_steps``.

    With u uniform on [min_steps - 1, max_steps - 1]: LSTM b_f = log(u), b_i = -b_f; GRU b_z = log(u), as torch's z is
    the gate that keeps (Tallec and Ollivier 2018, "Can recurrent neural networks warp time?"). log(u) is for sigmoid
    gates: a hard one is saturated from u = 20 on.
    """
    if not 1 < min_steps <= max_steps < math.inf:
        raise ValueError(f"expected 1 < min_steps <= max_steps < inf, got {min_steps} and {max_steps}")
    for gates, own, _, hidden in _with_biases("ifgo fgo rzn", module):
        kept = _bias(own, gates, "f" if "f" in gates else "z", hidden)
        log_u = torch.empty_like(kept[0]).uniform_(min_steps - 1, max_steps - 1, generator=generator).log_()
        _set_sum(own, kept, log_u)
        if "i" in gates:
            _set_sum(own, _bias(own, gates, "i", hidden), log_u.neg())
    return module


_BY_NAME: dict[str, Callable[..., Any]] = {
    "orthogonal": orthogonal_,
    "identity": identity_,
    "forget_bias": forget_bias_,
    "chrono": chrono_,
}


def apply_(module: Module, name: str, **arguments: Any) -> Module:
    """One of these functions by its name without the underscore: "orthogonal", "identity", "forget_bias", "chrono"."""
    if name not in _BY_NAME:
        raise ValueError(f"no initialisation is called {name!r}: there are {', '.join(_BY_NAME)}")
    initialised: Module = _BY_NAME[name](module, **arguments)
    return initialised
