"""LSTM, GRU and RNN with fused time loops, in place of ``torch.nn``'s.

``fused_rnn.LSTM`` (``GRU``, ``RNN``, and their cells) is used as ``torch.nn.LSTM`` is; :func:`convert` swaps the ones
inside an existing model, :func:`patched` those that other code is about to make, and :mod:`fused_rnn.functional` has
them as functions of their parameters. :class:`Stream` serves a module a few steps at a time, :func:`truncated_bptt`
trains one so. :mod:`fused_rnn.onnx` and :mod:`fused_rnn.interchange` take models and weights elsewhere and back.
:mod:`fused_rnn.diagnostics` looks at gradients inside of backpropagation through time.
"""

from . import diagnostics, functional, init, interchange
from . import exported as _exported  # noqa: F401  (for what it registers)
from . import fakes as _fakes  # noqa: F401  (likewise)
from . import flops as _flops  # noqa: F401  (likewise)
from . import forking as _forking  # noqa: F401  (likewise)
from . import onnx as onnx  # not in __all__: it would hide the package of this name
from .cells import GRUCell, LSTMCell, RNNCell
from .convert import convert, patched
from .modules import GRU, LSTM, RNN
from .streaming import Stream
from .truncated import truncated_bptt

__version__ = "0.1.0"
__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Stream",
    "convert",
    "diagnostics",
    "functional",
    "init",
    "interchange",
    "patched",
    "truncated_bptt",
]
