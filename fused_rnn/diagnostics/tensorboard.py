"""Into TensorBoard, by whatever has the interface of ``torch.utils.tensorboard.SummaryWriter``."""

from __future__ import annotations

from typing import Any

from .flow import GradientFlow

__all__ = ["write_scalars"]


def write_scalars(writer: Any, flow: GradientFlow, step: int, tag: str = "gradient_flow") -> None:
    """The numbers to follow over training, by ``writer.add_scalar(name, value, step)``.

    For each layer and direction of each call: ``rate``, the factor a step; ``first`` and ``last``, norms of dL/dh at
    both ends of the sequence; ``share_past_gates`` (not of a plain RNN), the mean over steps; ``saturated/<gate>``, if
    gates were recorded; of h and an LSTM's c, if the layer clips gradients, ``clipped/<state>``, the share of rows that
    a clip cut, and ``clipped_to/<state>``, the mean over steps of what it left of the norm.
    Names are tag/module/call_n/layer_k/number, without the module where it was recorded itself, with call_n where
    there was more than one.
    """
    for number, call in enumerate(flow.calls):
        where = "/".join(filter(None, (tag, call.name, f"call_{number}" if len(flow.calls) > 1 else "")))
        for layer in (layer for layer in call.layers if layer.reached) if call.reached else ():
            name = f"{where}/{layer.name.replace(' ', '_')}"
            scalars: dict[str, Any] = {"rate": layer.rate, "first": layer.h[0], "last": layer.h[-1]}
            if layer.keeps:
                scalars["share_past_gates"] = layer.share_kept.nanmean()
            if layer.has_gates:
                scalars |= {f"saturated/{gate}": (low + high).mean() for gate, (low, high) in layer.saturation.items()}
            for state, (rows, factor) in layer.clipping.items():
                scalars[f"clipped/{state}"] = rows.sum() / layer.rows.sum()
                scalars[f"clipped_to/{state}"] = factor.nanmean()
            for scalar, value in scalars.items():
                writer.add_scalar(f"{name}/{scalar}", float(value), step)
