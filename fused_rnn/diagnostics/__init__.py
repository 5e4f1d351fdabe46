"""What happens to the gradient inside of backpropagation through time (docs/gradient_flow.md).

:func:`gradient_flow` around a forward and backward tells, for each layer, direction and step, how large dL/dh_t and
dL/dc_t are, which way they came, and how far the gates are saturated; :func:`verdict` says it in words, ``plots`` draws
it, :func:`write_scalars` sends it to TensorBoard. :func:`jacobian_norms` and :func:`recurrent_spectra` look at the
network without a loss.
"""

from .context import gradient_flow
from .flow import CallFlow, Clipping, GradientFlow, LayerFlow, Saturation
from .jacobians import jacobian_norms
from .spectra import Spectrum, recurrent_spectra
from .tensorboard import write_scalars
from .words import EXPLODED, VANISHED, Verdict, table, verdict

__all__ = [
    "EXPLODED",
    "VANISHED",
    "CallFlow",
    "Clipping",
    "GradientFlow",
    "LayerFlow",
    "Saturation",
    "Spectrum",
    "Verdict",
    "gradient_flow",
    "jacobian_norms",
    "recurrent_spectra",
    "table",
    "verdict",
    "write_scalars",
]
