"""Our modules in graphs of ``torch.fx``, whose tracer makes one node by itself only of modules that torch defines."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

__all__ = ["as_node", "is_proxy"]


def is_proxy(input: Any) -> bool:
    """Whether a tracer asks what a module does, by giving it this."""
    return type(input) is not Tensor and isinstance(input, Proxy)


def as_node(module: nn.Module, input: Proxy, hx: Any, options: dict[str, Any]) -> Proxy:
    """The call of a module as one node."""
    tracer: Any = input.tracer
    path = tracer.path_of_module(module)
    return tracer.create_proxy("call_module", path, (input,) if hx is None else (input, hx), options)
