"""``LSTM``, ``GRU`` and ``RNN``: the ``torch.nn`` modules of these names on fused time loops; their arguments and what
they document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from .module_base import SequenceModule
from .network import RNN_RELU as _RNN_RELU
from .variants import describe, of_nonlinearity
from .variants import variant as _variant

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .calls import HiddenCall, HiddenRegularisation, LSTMCall, Regularisation

__all__ = ["GRU", "LSTM", "RNN"]


class LSTM(SequenceModule):
    r"""A drop-in replacement of ``torch.nn.LSTM``.

    i, f, o = sigmoid(.) and g = tanh(.) of W_i* x_t + b_i* + W_h* h_{t-1} + b_h*, then c_t = f c_{t-1} + i g and
    h_t = o tanh(c_t) (Hochreiter & Schmidhuber 1997, Gers et al. 2000); with ``proj_size`` h_t = W_hr (o tanh(c_t))
    (Sak et al. 2014).

    Args:
        input_size: I, the features of the input.
        hidden_size: H, the units.
        num_layers: L layers, each reading the outputs of the one below.
        bias: whether there are b_ih and b_hh.
        batch_first: whether input and output (not the states) are [B, T, ..] instead of [T, B, ..].
        dropout: the probability with which outputs of all layers but the last are zeroed in training.
        bidirectional: D = 2 directions in place of 1.
        proj_size: P, the size of a projected h; 0 for none. R is P, or H where there is none.
        device, dtype: of the parameters.
        recompute: keep only c_t of each step (a GRU: h_t; an RNN keeps no more anyway) for the backward, which computes
            the gates again, on the CPU a piece of time at a time: training in about half of the memory, for two more
            matrix products of the whole sequence. By keyword, as ``torch.nn`` has no such option; the attribute
            ``recompute`` may be changed at any time. Outputs are the same bits, gradients the same within rounding.
        gate_activation: in place of the sigmoid of i, f and o, by keyword: "sigmoid", "hard_sigmoid", "tanh",
            "hard_tanh", "relu", "softsign" or "identity" (docs/variants.md).
        activation: likewise, in place of both tanh.
        peephole: i and f look at c_{t-1} too, o at c_t, each through one weight a unit (Gers & Schmidhuber 2000), by
            keyword.
        coupled_gates: i = 1 - f (Greff et al. 2017), by keyword. Parameters then have 3*H rows, of f, g, o, and
            ``weight_ch_l{k}`` has 2*H.
        layer_norm: W_i x_t and W_h h_{t-1}, of all gates together, and the c_t of h_t are normalised (Ba et al. 2016),
            by keyword; see docs/layer_norm.md.
        input_dropout, variational_dropout, recurrent_dropout, weight_dropout, zoneout_h, zoneout_c: regularisation in
            training, by keyword (docs/regularisation.md). Probabilities with which features of the input, units of
            h_{t-1} on their way to W_hh (Gal & Ghahramani 2016) and elements of W_hh (Merity et al. 2018) are zeroed
            for all steps of a call, and units of h and c keep their old value in a step (Krueger et al. 2017; in
            evaluation as much of it as on average). With ``variational_dropout`` that between layers is one mask for
            all steps.
        clip_grad_value, clip_grad_norm: bounds of what the backward sends from a step to each of h and c before it, for
            each element and for the norm of each row (docs/gradient_clipping.md); by keyword, None for no bound.
        connection: between the layers, by keyword, so that deep stacks train: "residual", "dense" or "highway"
            (docs/connections.md).

    Call: ``module(input, hx=None, *, reset=None, reset_to="zero", lengths=None, cells=False)``.

    Inputs: ``input`` [T, B, I], [B, T, I], unbatched [T, I], or a PackedSequence; ``hx`` = (h0 [L*D, B, R],
    c0 [L*D, B, H]), without B if unbatched, or None for zeros. By keyword, ``reset``: a bool tensor [T, B], [B, T],
    unbatched [T], or a PackedSequence of bool packed like the input. True at (t, b) says that an episode of row b
    begins at step t: in every layer the state is cleared before step t, in the reverse direction after it, and no
    gradient passes. ``h_n`` and ``c_n`` are those after the last step, as ever. ``reset_to`` says what the state is
    cleared to: "zero", or "initial" for ``hx``, to which gradients of every episode then flow.

    ``lengths``: integers [B] in any order, unbatched [], on any device. Row b has the first lengths[b] steps, and what
    is past them plays no part; numbers out of range are taken as 0 or T. Outputs past the end are zero, ``h_n`` and
    ``c_n`` those after each row's own last step, the reverse direction begins there, and a row without steps keeps
    ``hx``. In eager mode on the CPU the cost is that of the steps there are; elsewhere rows are walked to step T and
    masked, and nothing waits for the device. Not beside a PackedSequence, which has lengths of its own.

    Outputs: ``output`` [T, B, D*R] in the layout of the input, ``(h_n, c_n)`` in that of the states. With ``cells`` the
    first is a pair ``(output, c)``: c of every step of the last layer, [T, B, D*H] in the layout of the output. It is
    what a step left, before any clearing, and gradients flow through it.

    Parameters, for layer k (and ``_reverse``): ``weight_ih_l{k}`` [4*H, I or D*R], ``weight_hh_l{k}`` [4*H, R],
    ``bias_ih_l{k}`` and ``bias_hh_l{k}`` [4*H], ``weight_hr_l{k}`` [P, H]; gates in the order i, f, g, o. With
    ``peephole`` ``weight_ch_l{k}`` [3*H], of i, f, o; with ``layer_norm`` the gains ``weight_ln_ih_l{k}``
    and ``weight_ln_hh_l{k}`` [4*H] and ``weight_ln_ch_l{k}`` [H], 1 at first, and the shift ``bias_ln_ch_l{k}`` [H], 0.
    With ``connection="highway"`` ``weight_hw_l{k}`` [D*R, D*R] and
    ``bias_hw_l{k}`` [D*R] for k > 0, after all others; with "dense" ``weight_ih_l{k}`` has I + k*D*R columns.

    Kernels serve float32, float64, bfloat16 and float16 on the CPU and, where they were built, on CUDA; elsewhere
    torch's own functions run, or for what these do not know the plain-torch reference, step by step.

    Raises:
        TypeError, ValueError: as ``torch.nn.LSTM`` for its arguments; for an input of another rank or dtype.
            For a reset that is not bool; another ``reset_to``; an activation or connection of another name; lengths
            that are not integers, or beside a PackedSequence.
        RuntimeError: for sizes of input, states, reset or lengths that do not fit, states of another dtype, a sequence
            of no steps.
    """

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        recompute: bool = False,
        gate_activation: str = "sigmoid",
        activation: str = "tanh",
        peephole: bool = False,
        coupled_gates: bool = False,
        layer_norm: bool = False,
        connection: str | None = None,
        **regularisation: Unpack[Regularisation],
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(
        self,
        *args: Any,
        gate_activation: str = "sigmoid",
        activation: str = "tanh",
        peephole: bool = False,
        coupled_gates: bool = False,
        layer_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        options = {"peephole": peephole, "coupled_gates": coupled_gates, "layer_norm": layer_norm}
        super().__init__("LSTM", *args, variant=_variant(gate_activation, activation, **options), **kwargs)

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        slots, batch, _ = self.get_expected_hidden_size(input, batch_sizes)
        return slots, batch, self.hidden_size

    def check_forward_args(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
        self.check_input(input, batch_sizes)
        expected = (
            self.get_expected_hidden_size(input, batch_sizes),
            self.get_expected_cell_size(input, batch_sizes),
        )
        for i, size in enumerate(expected):
            self.check_hidden_size(hidden[i], size, f"Expected hidden[{i}] size {{}}, got {{}}")

    def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
        return hx if permutation is None else tuple(state.index_select(1, permutation) for state in hx)

    if TYPE_CHECKING:
        __call__: LSTMCall


class _Hidden(SequenceModule):
    """A network whose only state is h."""

    def __init__(self, mode: str, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__(mode, *args, **kwargs)

    if TYPE_CHECKING:
        __call__: HiddenCall


class GRU(_Hidden):
    r"""A drop-in replacement of ``torch.nn.GRU``.

    r, z = sigmoid(W_i* x_t + b_i* + W_h* h_{t-1} + b_h*), n = tanh(W_in x_t + b_in + r (W_hn h_{t-1} + b_hn)), then
    h_t = (1 - z) n + z h_{t-1} (Cho et al. 2014 with the reset gate after the product).

    Arguments, shapes, dtypes and errors as for :class:`LSTM`, without ``proj_size``, ``peephole``, ``coupled_gates``,
    ``zoneout_c`` and ``cells``; the only state is h, so ``hx`` is h0 [L*D, B, H] and the outputs are ``output, h_n``.
    Weights have 3*H rows, gates in the order r, z, n; ``gate_activation`` is that of r and z, ``activation`` that of n.
    With ``reset_after=False``, by keyword, n = tanh(W_in x_t + b_in + W_hn (r h_{t-1}) + b_hn) as in the paper itself,
    as Keras calls it. With ``layer_norm``, for which r must come after the product, there are ``weight_ln_ih_l{k}`` and
    ``weight_ln_hh_l{k}`` [3*H].
    """

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        recompute: bool = False,
        gate_activation: str = "sigmoid",
        activation: str = "tanh",
        reset_after: bool = True,
        layer_norm: bool = False,
        connection: str | None = None,
        **regularisation: Unpack[HiddenRegularisation],
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(
        self,
        *args: Any,
        gate_activation: str = "sigmoid",
        activation: str = "tanh",
        reset_after: bool = True,
        layer_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        variant = _variant(gate_activation, activation, reset_after=reset_after, layer_norm=layer_norm)
        super().__init__("GRU", *args, variant=variant, **kwargs)


class RNN(_Hidden):
    r"""A drop-in replacement of ``torch.nn.RNN``: h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh) (Elman 1990), or
    relu in place of tanh.

    Arguments, shapes, dtypes and errors as for :class:`GRU`, without the variants but ``layer_norm``, and with
    ``nonlinearity`` ('tanh', 'relu', or another activation that :class:`LSTM` names) as the fourth; the only state is
    h, so ``hx`` is h0 [L*D, B, H] and the outputs are ``output, h_n``.
    """

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        recompute: bool = False,
        layer_norm: bool = False,
        connection: str | None = None,
        **regularisation: Unpack[HiddenRegularisation],
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(self, *args: Any, layer_norm: bool = False, **kwargs: Any) -> None:
        if len(args) > 3:
            args, self.nonlinearity = args[:3] + args[4:], args[3]
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        cell, variant = of_nonlinearity(self.nonlinearity, layer_norm)
        super().__init__("RNN_RELU" if cell == _RNN_RELU else "RNN_TANH", *args, variant=variant, **kwargs)

    def _variant_arguments(self) -> dict[str, Any]:
        if self.variant is None or not self.variant.state:
            return super()._variant_arguments()
        own = describe(self.variant._replace(state=0), self.drops)
        return {"nonlinearity": self.nonlinearity, **own}
