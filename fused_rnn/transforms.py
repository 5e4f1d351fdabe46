"""Whether the bare op will do for a call, or somebody differentiates or maps it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

__all__ = ["differentiates", "transformed"]

# Bound functions: every look-up saved is 50 ns of each call.
_is_compiling = torch.compiler.is_compiling
_functorch_active = torch._C._are_functorch_transforms_active


def transformed() -> bool:
    """Whether a functorch transform or a forward-mode level is open: ``requires_grad`` alone then tells nothing."""
    return forward_ad._current_level >= 0 or (_functorch_active() and (_is_compiling() or _more_than_functionalized()))


def _more_than_functionalized() -> bool:
    """Functionalizing neither differentiates nor maps. (Dynamo cannot look there.)"""
    return any(level.key() != TransformType.Functionalize for level in get_interpreter_stack() or ())


def differentiates(*tensors: Tensor | None) -> bool:
    """Whether something may be differentiated or mapped through a layer of these tensors: the bare op won't do."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return transformed()
