"""The texts in which bad input is refused: those of ``torch.nn``, and better ones where torch's say nothing useful.

Every function here builds the exception; the caller tests and raises, so that a good call pays for no call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .reference import Cell

_SCALAR_NAMES = {
    torch.float32: "Float",
    torch.float64: "Double",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.complex64: "ComplexFloat",
    torch.complex128: "ComplexDouble",
    torch.int64: "Long",
    torch.int32: "Int",
}


def input_rank(cell: int, rank: int) -> ValueError:
    name = "LSTM" if cell == Cell.LSTM else "GRU" if cell == Cell.GRU else "RNN"
    return ValueError(f"{name}: Expected input to be 2D or 3D, got {rank}D {'tensor ' if name == 'RNN' else ''}instead")


def input_dtype(given: torch.dtype, weights: torch.dtype) -> ValueError:
    return ValueError(
        f"RNN input dtype ({given}) does not match weight dtype ({weights}). "
        f"Convert input: input.to({weights}), or convert model: model.to({given})"
    )


def packed_rank(rank: int) -> RuntimeError:
    return RuntimeError(f"input must have 2 dimensions, got {rank}")


def input_size(expected: int, given: int) -> RuntimeError:
    return RuntimeError(f"input.size(-1) must be equal to input_size. Expected {expected}, got {given}")


def state_rank(batched: bool, states: Sequence[Tensor]) -> RuntimeError:
    kind, rank = ("batched 3-D", 3) if batched else ("unbatched 2-D", 2)
    if len(states) == 1:
        return RuntimeError(f"For {kind} input, hx should also be {rank}-D but got {states[0].dim()}-D tensor")
    ranks = ", ".join(f"{state.dim()}-D" for state in states)
    return RuntimeError(f"For {kind} input, hx and cx should also be {rank}-D but got ({ranks}) tensors")


def state_size(which: str, expected: tuple[int, ...], state: Tensor) -> RuntimeError:
    """``which``: "hidden", or "hidden[0]" and "hidden[1]" for an LSTM's h and c."""
    return RuntimeError(f"Expected {which} size {expected}, got {list(state.shape)}")


def state_dtype(states: Sequence[Tensor], dtype: torch.dtype) -> RuntimeError:
    """States of another dtype than the weights'. For a GRU and an RNN the text begins as torch's does."""
    if len(states) == 1:
        (h,) = states
        names = (_SCALAR_NAMES.get(d, str(d)) for d in (h.dtype, dtype))
        return RuntimeError(
            f"mat1 and mat2 must have the same dtype, but got {' and '.join(names)}: "
            f"hx is {h.dtype}, input and weights are {dtype}"
        )
    return RuntimeError(
        f"LSTM: hx and cx must have the dtype of input and weights ({dtype}), "
        f"got {' and '.join(str(state.dtype) for state in states)}"
    )


def layer_count() -> ValueError:
    return ValueError("num_layers must be greater than zero")


def state_count() -> RuntimeError:
    return RuntimeError("lstm expects two hidden states")


def state_missing(index: int) -> TypeError:
    return TypeError(f"expected Tensor as element {index} in argument 2, but got NoneType")


def elsewhere(x: Tensor, states: Sequence[Tensor | None], weights: Sequence[Tensor]) -> RuntimeError | None:
    """None where all of them are on the device of x."""
    for what, tensors in (("hidden", states), ("parameter", weights)):
        for tensor in tensors:
            if tensor is not None and tensor.device != x.device:
                return RuntimeError(
                    f"Input and {what} tensors are not at the same device, found input tensor at {x.device} and {what} "
                    f"tensor at {tensor.device}"
                )
    return None


def state_type(which: str, given: Any) -> TypeError:
    return TypeError(f"Expected {which} to be a tensor, got {type(given).__name__}")


def no_memory() -> RuntimeError:
    return RuntimeError(
        "Stream works on memory, which tensors of torch.export and FakeTensorMode lack and no trace records: use the "
        "module there"
    )


def reset_type(given: Any) -> TypeError:
    kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
    return TypeError(f"reset must be a bool tensor, got {kind}")


def reset_not_packed(given: Any) -> TypeError:
    return TypeError(f"reset must be a PackedSequence, as input is one, got {type(given).__name__}")


def reset_size(expected: tuple[int, ...], reset: Tensor) -> RuntimeError:
    return RuntimeError(f"Expected reset size {expected}, got {list(reset.shape)}")


def reset_device(expected: torch.device, given: torch.device) -> RuntimeError:
    return RuntimeError(f"reset must be on the device of input ({expected}), got {given}")


def reset_packing() -> RuntimeError:
    return RuntimeError("reset must be packed as input is: its batch_sizes or its sorted_indices are others")


def reset_state(given: str) -> ValueError:
    return ValueError(f"reset_to must be 'zero' or 'initial', got {given!r}")


def activation(argument: str, known: Iterable[str], given: str) -> ValueError:
    return ValueError(f"{argument} must be one of {', '.join(map(repr, known))}, got {given!r}")


def not_a_bool(argument: str, given: Any) -> TypeError:
    return TypeError(f"{argument} should be of type bool, got: {type(given).__name__}")


def norm_of_reset_before() -> ValueError:
    return ValueError("layer_norm argument is only supported with reset_after=True")


def connection(known: Iterable[str], given: Any) -> ValueError:
    return ValueError(f"connection must be one of {', '.join(map(repr, known))} or None, got {given!r}")


def nonlinearity(known: Iterable[str], given: str) -> ValueError:
    return ValueError(f"Unknown nonlinearity '{given}'. Select from {', '.join(map(repr, known))}.")


def onnx_packed() -> NotImplementedError:
    return NotImplementedError(
        "a PackedSequence cannot be exported to ONNX, whose nodes take padded tensors: export a model of padded input"
    )


def onnx_reset() -> NotImplementedError:
    return NotImplementedError(
        "reset cannot be exported to ONNX, whose nodes never clear their state: export a model that is called without"
    )


def onnx_dtype(given: torch.dtype) -> NotImplementedError:
    return NotImplementedError(f"ONNX's LSTM, GRU and RNN nodes are of float16, float32 or float64, got {given}")


def onnx_variant() -> NotImplementedError:
    return NotImplementedError("this variant of the cell cannot be exported to ONNX, whose nodes have no such option")


def onnx_drawn() -> NotImplementedError:
    return NotImplementedError(
        "recurrent_dropout, weight_dropout, input_dropout and variational_dropout cannot be exported to ONNX in "
        "training mode, as the file would hold the masks of one call, or none: export model.eval()"
    )


def onnx_hard_tanh() -> NotImplementedError:
    return NotImplementedError(
        "a hard tanh of gates, of an LSTM or with reset_after=False cannot be exported to ONNX, whose nodes have none; "
        "another GRU's or an RNN's can"
    )


def onnx_coupled() -> NotImplementedError:
    return NotImplementedError(
        "coupled gates can be exported to ONNX where 1 - f(x) = f(-x): with gate_activation 'sigmoid' or 'hard_sigmoid'"
    )


def onnx_without_kernels() -> NotImplementedError:
    return NotImplementedError(
        "variants of cells are exported to ONNX from the CPU, by torch.onnx.export(..., dynamo=True)"
    )


def onnx_lengths() -> NotImplementedError:
    return NotImplementedError(
        "lengths cannot be exported to ONNX by the exporter of TorchScript: use torch.onnx.export(..., dynamo=True)"
    )


def exported_transform() -> NotImplementedError:
    return NotImplementedError(
        "a program of torch.export has gradients, but neither forward mode nor torch.func's transforms: use the module"
    )


def onnx_cells() -> NotImplementedError:
    return NotImplementedError(
        "c of every step (cells=True, and lengths of an LSTM in a program of torch.export) cannot be exported to ONNX, "
        "whose nodes give that of the last one only: export a model that is called without; lengths go from a model "
        "to torch.onnx.export directly"
    )


def lengths_type(given: Any) -> TypeError:
    kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
    return TypeError(f"lengths must be an integer tensor, got {kind}")


def lengths_size(expected: tuple[int, ...], lengths: Tensor) -> RuntimeError:
    return RuntimeError(f"Expected lengths size {expected}, got {list(lengths.shape)}")


def lengths_of_packed() -> ValueError:
    return ValueError("lengths must be None where input is a PackedSequence, which has lengths of its own")


def lstm_only(argument: str) -> ValueError:
    return ValueError(f"{argument} argument is only supported for LSTM, not RNN or GRU")


def probability(argument: str) -> ValueError:
    return ValueError(f"{argument} should be a number in range [0, 1] representing a probability")


def bound(argument: str) -> ValueError:
    return ValueError(f"{argument} should be a positive number, or None for no bound")


def unexpected(argument: str) -> TypeError:
    return TypeError(f"got an unexpected keyword argument '{argument}'")


def recorded_transform() -> RuntimeError:
    return RuntimeError(
        "gradient_flow records ordinary calls and backwards: not under torch.compile, torch.func or forward-mode AD"
    )


def recorded_batch() -> RuntimeError:
    return RuntimeError("gradient_flow records one backward at a time, not is_grads_batched")


def recorded_lengths() -> RuntimeError:
    return RuntimeError(
        "gradient_flow takes lengths in eager mode only, of a plain tensor, under no transform: pack the sequence"
    )


def no_steps() -> RuntimeError:
    return RuntimeError("Expected sequence length to be larger than 0 in RNN")


def param_count(
    given: int, layers: int, directions: int, extra: Sequence[str] = (), highway: bool = False
) -> ValueError:
    own, last = len(extra), "".join(f", then {name}" for name in extra)
    return ValueError(
        f"params must hold {2 + own} to {5 + own} tensors (w_ih, w_hh, then b_ih and b_hh, then an LSTM's w_hr{last}) "
        f"for each of {layers} layers and {directions} directions"
        f"{', then w_hw and b_hw of each layer but the first' if highway else ''}, got {given} tensors in all"
    )


def weight_rank(name: str, weight: Tensor) -> RuntimeError:
    return RuntimeError(f"{name} must have 2 dimensions, got {weight.dim()}")


def scripted() -> RuntimeError:
    return RuntimeError(
        "torch.jit.script cannot compile modules of fused_rnn: use torch.jit.trace or torch.export, "
        'or fused_rnn.convert(model, to="torch") first'
    )


def complex_clip() -> TypeError:
    return TypeError("clip_grad_value bounds real numbers; of complex ones clip_grad_norm bounds the norm")
