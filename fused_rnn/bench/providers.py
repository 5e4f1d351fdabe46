"""Who is measured: a registry of name -> builder.

A builder takes a case and its reference ``nn`` module, whose weights it must use, and returns a ``Call``; it raises
``Unsupported`` for what the provider cannot do. All torch providers are modules called as ``module(x)``, so that they
differ in the module only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from .cases import Case

BASELINE = "nn"


class Unsupported(Exception):
    """This provider cannot do this case; the text says why."""


class Call(Protocol):
    def __call__(self) -> object:
        """One timed call."""

    def results(self) -> dict[str, Tensor]:
        """What the gate compares: y (padded with zeros), hn, cn, and gradients named ``d`` + tensor."""

    def release(self) -> None:
        """Lets go of what the last call left behind, so that a call's memory can be measured."""


Builder = Callable[[Case, nn.RNNBase], Call]
PROVIDERS: dict[str, Builder] = {}


def register(name: str) -> Callable[[Builder], Builder]:
    def add(builder: Builder) -> Builder:
        PROVIDERS[name] = builder
        return builder

    return add


class ModuleCall:
    """A module as a program uses it: under ``no_grad``, or forward and ``backward()`` to the input and all weights.

    Gradients are dropped before each call, as ``optimizer.zero_grad()`` does, so that a call never adds to the last
    one's. States are left to default to zeros. A packed input is packed before, outside what is timed.
    """

    def __init__(self, module: nn.Module, case: Case) -> None:
        self.module = module.train(case.training)
        self.case = case
        self.x, self.dy = case.inputs()
        self.data = self.x.data if isinstance(self.x, PackedSequence) else self.x
        if case.training:
            self.data = self.data.requires_grad_()
            if isinstance(self.x, PackedSequence):
                self.x = self.x._replace(data=self.data)

    def __call__(self) -> Any:
        if not self.case.training:
            with torch.no_grad():
                return self.module(self.x)
        self.release()
        out: tuple[Any, Any] = self.module(self.x)
        y = out[0]
        (y.data if isinstance(y, PackedSequence) else y).backward(self.dy)
        return out

    def release(self) -> None:
        self.data.grad = None
        for parameter in self.module.parameters():
            parameter.grad = None

    def results(self) -> dict[str, Tensor]:
        y, states = self()
        if isinstance(y, PackedSequence):
            y = pad_packed_sequence(y)[0]
        found: dict[str, Tensor] = {"y": y.detach()}
        names = ("hn", "cn")
        for name, state in zip(names, states if isinstance(states, tuple) else (states,), strict=False):
            found[name] = state.detach()
        if self.case.training:
            found |= {"d" + name: given(parameter.grad) for name, parameter in self.module.named_parameters()}
            found["dx"] = given(self.data.grad)
        return found


def given(gradient: Tensor | None) -> Tensor:
    """A missing gradient becomes something that the gate refuses."""
    return torch.full((1,), float("nan")) if gradient is None else gradient.detach().clone()


@register(BASELINE)
def _nn(case: Case, reference: nn.RNNBase) -> Call:
    if case.device != "cpu":
        into_one_block(reference)
    return ModuleCall(reference, case)


def into_one_block(module: nn.RNNBase) -> None:
    """Weights as cuDNN wants them, which else gathers them at each call. ``flatten_parameters()`` leaves out bf16."""
    weights: list[Any] = module._flat_weights  # not None, as torch's annotation has it
    if weights[0].dtype == torch.bfloat16:
        with torch.no_grad():
            torch._cudnn_rnn_flatten_weight(
                weights,
                len(module._all_weights[0]),
                module.input_size,
                torch.backends.cudnn.rnn.get_cudnn_mode(module.mode),
                module.hidden_size,
                module.proj_size,
                module.num_layers,
                module.batch_first,
                module.bidirectional,
            )


@register("fused")
def _fused(case: Case, reference: nn.RNNBase) -> Call:
    return ours(case, reference)


@register("recompute")
def _recompute(case: Case, reference: nn.RNNBase) -> Call:
    if not case.training:
        raise Unsupported("nothing is computed again in inference")
    return ours(case, reference, recompute=True)


def ours(case: Case, reference: nn.RNNBase, **options: bool) -> Call:
    library = importlib.import_module("fused_rnn")
    like = {"device": reference.weight_ih_l0.device, "dtype": reference.weight_ih_l0.dtype}
    module = getattr(library, case.cell.split("_")[0])(**case.arguments(), **like, **options)
    module.load_state_dict(reference.state_dict())
    call = ModuleCall(module, case)
    if case.device != "cpu" and not ours_ran(call):
        raise Unsupported("no kernel of ours: the call went to torch's own functions")
    return call


class StreamCall:
    """Our ``Stream``: the weights are packed before, as in an ONNX Runtime session; every call begins at zero state."""

    def __init__(self, reference: nn.RNNBase, case: Case) -> None:
        self.stream = importlib.import_module("fused_rnn").Stream(reference, case.shape.B)
        self.x = case.inputs()[0]

    def __call__(self) -> Any:
        self.stream.reset()
        return self.stream(self.x)

    def results(self) -> dict[str, Tensor]:
        y, states = self(), self.stream.state
        states = states if isinstance(states, tuple) else (states,)
        return {"y": y, **dict(zip(("hn", "cn"), states, strict=False))}

    def release(self) -> None:
        pass


@register("stream")
def _stream(case: Case, reference: nn.RNNBase) -> Call:
    if case.training or case.device != "cpu":
        raise Unsupported("inference on the CPU only")
    if case.shape.packed or case.shape.bidirectional:
        raise Unsupported("one direction, padded sequences")
    return StreamCall(reference, case)


class OpsSeen(TorchDispatchMode):
    """The names of the ops that a program calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def ops_of(call: Call) -> set[str]:
    with OpsSeen() as seen:
        call()
    call.release()
    return seen.names


def ours_ran(call: Call) -> bool:
    """Whether a call reaches our ops. Where there is no kernel our modules run ``nn.*``'s own functions: right, and
    nothing to be timed as ours."""
    return any(name.startswith("fused_rnn::") for name in ops_of(call))


@register("native")
def _native(case: Case, reference: nn.RNNBase) -> Call:
    if case.device == "cpu":
        raise Unsupported("nn.* without cuDNN: on CUDA only")
    return WithoutCudnn(reference, case)


class WithoutCudnn(ModuleCall):
    """``nn.*`` on torch's own kernels, a few launches a step: the way out for double backward and the like."""

    def __call__(self) -> Any:
        before, torch.backends.cudnn.enabled = torch.backends.cudnn.enabled, False
        try:
            return super().__call__()
        finally:
            torch.backends.cudnn.enabled = before


class LoopRNN(nn.Module):
    """The layer as a Python loop over torch's own cell functions, one call a step: what people write by hand.

    Packed input is padded, and finished rows keep their state through ``torch.where``.
    """

    def __init__(self, reference: nn.RNNBase) -> None:
        super().__init__()
        self.mode, self.layers, self.directions = reference.mode, reference.num_layers, 1 + reference.bidirectional
        self.hidden = reference.hidden_size
        for name, parameter in reference.named_parameters():
            self.register_parameter(name, nn.Parameter(parameter.detach().clone()))
        self.step: Callable[..., Any] = getattr(torch, self.mode.lower() + "_cell")  # lstm_cell, rnn_tanh_cell, ...

    def forward(self, x: Tensor | PackedSequence) -> tuple[Tensor | PackedSequence, object]:
        if isinstance(x, PackedSequence):
            padded, lengths = pad_packed_sequence(x)
            alive = torch.arange(padded.shape[0])[:, None] < lengths[None, :]
            y, states = self.run(padded, alive.to(padded.device)[:, :, None])
            return nn.utils.rnn.pack_padded_sequence(y, lengths), states
        return self.run(x, None)

    def run(self, x: Tensor, alive: Tensor | None) -> tuple[Tensor, object]:
        hn: list[Tensor] = []
        cn: list[Tensor] = []
        for layer in range(self.layers):
            outputs = [self.direction(x, alive, layer, reverse, hn, cn) for reverse in range(self.directions)]
            x = outputs[0] if self.directions == 1 else torch.cat(outputs, dim=-1)
        h = torch.stack(hn)
        return x, ((h, torch.stack(cn)) if self.mode == "LSTM" else h)

    def direction(
        self, x: Tensor, alive: Tensor | None, layer: int, reverse: int, hn: list[Tensor], cn: list[Tensor]
    ) -> Tensor:
        suffix = f"_l{layer}" + ("_reverse" if reverse else "")
        weights = [getattr(self, name + suffix) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        lstm = self.mode == "LSTM"
        h = x.new_zeros(x.shape[1], self.hidden)
        state = (h, h) if lstm else (h,)
        y: list[Tensor] = []
        for t in reversed(range(x.shape[0])) if reverse else range(x.shape[0]):
            new = self.step(x[t], state if lstm else state[0], *weights)
            new = new if lstm else (new,)
            if alive is not None:
                new = tuple(torch.where(alive[t], n, s) for n, s in zip(new, state, strict=True))
            state = new
            y.append(state[0])
        hn.append(state[0])
        cn += state[1:]
        out = torch.stack(y[::-1] if reverse else y)
        return out if alive is None else out * alive


@register("loop")
def _loop(case: Case, reference: nn.RNNBase) -> Call:
    return ModuleCall(LoopRNN(reference), case)


@register("compiled")
def _compiled(case: Case, reference: nn.RNNBase) -> Call:
    """The same loop under ``torch.compile``: unrolled over T, so its first call takes minutes at T of 100."""
    if case.shape.packed:
        raise Unsupported("pack_padded_sequence does not compile")
    loop = LoopRNN(reference)
    torch._dynamo.reset()
    loop.compile(dynamic=False)
    return ModuleCall(loop, case)


@register("onnxruntime")
def _onnxruntime(case: Case, reference: nn.RNNBase) -> Call:
    from . import ort

    return ort.build(case, reference)
