"""Our modules in graphs of ``torch.fx``, whose tracer makes one node by itself only of modules that torch defines."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy
from torch.fx.proxy import TraceError

__all__ = ["as_node", "is_proxy"]


def is_proxy(input: Any) -> bool:
    """Whether a tracer asks what a module does, by giving it this."""
    return type(input) is not Tensor and isinstance(input, Proxy)


def as_node(module: nn.Module, input: Proxy, hx: Any, options: dict[str, Any]) -> Proxy:
    """The call of a module as one node."""
    tracer: Any = input.tracer
    path = tracer.path_of_module(module)
    if not path:
        raise TraceError(f"{type(module).__name__} is one node of a graph: trace a module that calls it")
    return tracer.create_proxy("call_module", path, (input,) if hx is None else (input, hx), options)
