"""Fused networks in programs that were written for ``torch.nn``: in an existing model, or wherever one is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal

import torch
from torch.nn.modules import rnn as _torch
from torch.nn.utils import parametrize

from . import cells, modules

__all__ = ["Conversion", "Swap", "convert", "patched"]

Class = type[torch.nn.Module]

# Bound once: whoever later puts ours in torch's place must not make these the same classes.
_OURS: dict[Class, Class] = {
    _torch.LSTM: modules.LSTM,
    _torch.GRU: modules.GRU,
    _torch.RNN: modules.RNN,
    _torch.LSTMCell: cells.LSTMCell,
    _torch.GRUCell: cells.GRUCell,
    _torch.RNNCell: cells.RNNCell,
}
_TORCHS = {ours: theirs for theirs, ours in _OURS.items()}
_BASES = (_torch.RNNBase, _torch.RNNCellBase)
_NAMES = {cls.__name__ for cls in _OURS}


@dataclass(frozen=True)
class Swap:
    """One module, and what became of it."""

    paths: tuple[str, ...]  #: where it is in the model, every place of a shared one; "" is the model itself
    before: str  #: the name of its class
    after: str  #: that of the class it has now
    reason: str | None = None  #: why it was left as it is; None if it was swapped

    def __str__(self) -> str:
        where = ", ".join(path or "(the model)" for path in self.paths)
        return f"{where}: {self.before} -> {self.after}" if self.reason is None else f"{where}: {self.reason}"


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` did; printing it tells in words."""

    swapped: list[Swap] = field(default_factory=list)  #: what is of the other library now
    left: list[Swap] = field(default_factory=list)  #: what was left, and why

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)}, left {len(self.left)} as they are"]
        lines += [f"  {swap}" for swap in self.swapped]
        lines += [f"  left: {swap}" for swap in self.left]
        return "\n".join(lines)


def convert(model: torch.nn.Module, to: Literal["fused", "torch"] = "fused") -> Conversion:
    """Turns every LSTM, GRU, RNN and their cells inside ``model`` (or ``model`` itself) into ours, or back.

    It is done in place, by the class of each module: the module objects stay the same, and with them their parameters,
    buffers, hooks, training state, parametrizations, and every place that holds them. Subclasses are left alone, as
    they may depend on what they were written for, and so are modules whose ``forward`` was replaced, and variants and
    connections of ours that torch does not have.

    Args:
        model: any module.
        to: "fused" for ours, "torch" for those of ``torch.nn``.

    Returns:
        A report with ``swapped`` and ``left``, each a list of :class:`Swap`; ``print`` it.

    Raises:
        ValueError: for another ``to``.
    """
    if to not in ("fused", "torch"):
        raise ValueError(f'convert: to must be "fused" or "torch", got {to!r}')
    targets = _OURS if to == "fused" else _TORCHS
    places: dict[torch.nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(path)

    report = Conversion()
    for module, paths in places.items():
        cls = type(module)
        plain = parametrize.type_before_parametrizations(module)
        if plain in targets.values():
            continue
        reason = _obstacle(module, plain, targets)
        if reason is not None:
            report.left.append(Swap(tuple(paths), _name(cls), _name(cls), reason))
        elif plain in targets:
            module.__class__ = targets[plain] if cls is plain else _reparametrized(cls, targets[plain])
            report.swapped.append(Swap(tuple(paths), _name(plain), _name(targets[plain])))
    return report


@contextmanager
def patched() -> Iterator[None]:
    """Within the block ``torch.nn.LSTM``, ``GRU``, ``RNN`` and their cells are ours, for code that one does not own.

    Whatever stood there before comes back at the end, upon an exception too. It holds for the whole process, other
    threads included, and only for what looks the names up in ``torch.nn`` (or ``torch.nn.modules``, or its ``rnn``)
    during the block: names imported before, and modules made before, stay what they are.
    """
    places: list[ModuleType] = [torch.nn, torch.nn.modules, _torch]
    before = [(place, cls.__name__, getattr(place, cls.__name__)) for place in places for cls in _TORCHS]
    try:
        for place, name, _ in before:
            setattr(place, name, getattr(modules, name, None) or getattr(cells, name))
        yield
    finally:
        for place, name, old in before:
            setattr(place, name, old)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _obstacle(module: torch.nn.Module, plain: type, targets: dict[Class, Class]) -> str | None:
    """Why a recurrent module cannot be swapped; None if it can, or is none."""
    if isinstance(module, torch.jit.ScriptModule):
        scripted = getattr(module, "original_name", None)
        return f"{scripted} is compiled by TorchScript" if scripted in _NAMES else None
    if plain in targets:
        if getattr(module, "variant", None) is not None or getattr(module, "drops", None) is not None:
            return f"{_name(plain)} is a variant that torch.nn does not have"
        if getattr(module, "connection", None) is not None:
            return f"{_name(plain)} has connections between layers that torch.nn does not have"
        return f"{_name(plain)} has a forward of its own on the object" if "forward" in vars(module) else None
    if isinstance(module, _BASES) and not isinstance(module, tuple(targets.values())):
        return f"{_name(plain)} is a subclass, with a behaviour of its own"
    return None


def _reparametrized(cls: type, base: type) -> type:
    """The class that ``torch.nn.utils.parametrize`` made for one module, over another base."""
    namespace = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{base.__name__}", (base,), namespace)
