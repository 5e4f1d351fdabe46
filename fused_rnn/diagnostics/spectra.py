"""Eigenvalues and singular values of recurrent matrices: what bounds the gradient of a plain RNN."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..layouts import TORCH, renew

__all__ = ["Spectrum", "recurrent_spectra"]


class Spectrum(NamedTuple):
    """How much one gate's part of W_hh can stretch a state."""

    layer: int  #: its number, from 0
    reverse: bool  #: of which direction
    gate: str  #: its letter
    radius: float  #: the largest size of an eigenvalue
    norm: float  #: the largest singular value


@torch.no_grad()
def recurrent_spectra(module: nn.RNNBase) -> list[Spectrum]:
    """Of each gate's H x H part of W_hh, for every layer and direction of an LSTM, GRU or RNN (also of ``torch.nn``).

    With a projection of the matrix that takes the unprojected h to the gate, W_h W_hr. In f64. NaN where it
    holds NaN or infinity.

    For h_t = tanh(W_h h_{t-1} + ...) the norm of d h_T / d h_t is at most norm^(T-t), as tanh' is at most 1; that the
    radius passes 1 is necessary for it to explode, and that the norm is below 1 sufficient for it to vanish (Pascanu,
    Mikolov and Bengio 2013, "On the difficulty of training recurrent neural networks", section 2.1).

    Raises:
        TypeError: for something else than an LSTM, GRU or RNN module.
    """
    if not isinstance(module, nn.RNNBase):
        raise TypeError(f"expected an LSTM, GRU or RNN module, got {type(module).__name__}")
    renew(module)
    variant = getattr(module, "variant", None)
    coupled = variant is not None and variant.coupled
    found = []
    for layer in range(module.num_layers):
        for reverse in (False, True)[: 2 if module.bidirectional else 1]:
            suffix = f"_l{layer}" + ("_reverse" if reverse else "")
            recurrent: Tensor = getattr(module, "weight_hh" + suffix).detach().double()
            gates = "fgo" if coupled else TORCH[recurrent.shape[0] // module.hidden_size]
            for gate, part in zip(gates, recurrent.split(module.hidden_size), strict=True):
                if module.proj_size:
                    part = part @ getattr(module, "weight_hr" + suffix).detach().double()
                radius = norm = float("nan")
                if part.isfinite().all():  # of NaN some LAPACKs make a crash
                    radius = float(torch.linalg.eigvals(part).abs().max())
                    norm = float(torch.linalg.matrix_norm(part, 2))
                found.append(Spectrum(layer, reverse, gate, radius, norm))
    return found
