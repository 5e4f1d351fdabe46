"""What is measured: cells, modes, dtypes and shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

CELLS = ("LSTM", "GRU", "RNN")
MODES = ("infer", "train")
# tf32 is f32 whose products are rounded to TF32, on CUDA only; f32 then means products in full f32 (precision.py).
DTYPES = {
    "f32": torch.float32,
    "tf32": torch.float32,
    "f64": torch.float64,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """``T,B,I,H`` and, after them, ``Nlayers`` (say ``2l``), ``bi``, and ``packed`` or ``last`` in any order.

    ``last``: training whose loss is of the last step alone, as a classifier's: the gradient vanishes on its way.
    """

    T: int
    B: int
    I: int
    H: int
    layers: int = 1
    bidirectional: bool = False
    packed: bool = False
    last: bool = False

    @classmethod
    def parse(cls, text: str) -> Shape:
        sizes: list[int] = []
        flags: dict[str, bool] = {}
        for word in text.strip().lower().split(","):
            if word in ("bi", "packed", "last"):
                flags["bidirectional" if word == "bi" else word] = True
            elif word.removesuffix("l").isdigit() and len(sizes) < 5:
                sizes.append(int(word.removesuffix("l")))
            else:
                raise ValueError(f"shape {text!r}: {word!r} is not a size, 'bi', 'packed' or 'last'")
        if len(sizes) < 4 or min(sizes) < 1:
            raise ValueError(f"shape {text!r}: expected T,B,I,H[,layers][,bi][,packed|last], all sizes at least 1")
        if flags.get("packed") and flags.get("last"):
            raise ValueError(f"shape {text!r}: rows of a packed sequence have last steps of their own")
        return cls(*sizes, **flags)  # type: ignore[arg-type]

    def __str__(self) -> str:
        words = [str(self.T), str(self.B), str(self.I), str(self.H)]
        words += [f"{self.layers}l"] if self.layers > 1 else []
        words += ["bi"] if self.bidirectional else []
        words += ["packed"] if self.packed else []
        words += ["last"] if self.last else []
        return ",".join(words)

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def lengths(self) -> list[int]:
        """Of each row: all T, or for a packed shape evenly spaced from T down to T/4."""
        if not self.packed:
            return [self.T] * self.B
        span = self.T - max(1, self.T // 4)
        return [self.T - round(span * row / max(1, self.B - 1)) for row in range(self.B)]


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of work; ``cell`` is LSTM, GRU, RNN (tanh) or RNN_RELU."""

    cell: str
    mode: str
    dtype: str
    shape: Shape
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.cell} {self.mode} {self.dtype} {self.shape}"

    def as_dict(self) -> dict[str, object]:
        return {
            "cell": self.cell,
            "mode": self.mode,
            "dtype": self.dtype,
            "shape": str(self.shape),
            "device": self.device,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, str]) -> Case:
        return cls(**{**fields, "shape": Shape.parse(fields["shape"])})  # type: ignore[arg-type]

    @property
    def training(self) -> bool:
        return self.mode == "train"

    def arguments(self) -> dict[str, object]:
        """Constructor arguments, the same for ``nn.*`` and for ours."""
        shape = self.shape
        arguments: dict[str, object] = {
            "input_size": shape.I,
            "hidden_size": shape.H,
            "num_layers": shape.layers,
            "bidirectional": shape.bidirectional,
        }
        if self.cell == "RNN_RELU":
            arguments["nonlinearity"] = "relu"
        return arguments

    def reference(self) -> nn.RNNBase:
        """The ``nn`` module of this case, with weights that are the same at every call."""
        with torch.random.fork_rng(devices=[] if self.device == "cpu" else [torch.cuda.current_device()]):
            torch.manual_seed(5)
            with torch.device(self.device):  # where it is used: for large weights the CPU would take most of the time
                module: nn.RNNBase = getattr(nn, self.cell.split("_")[0])(**self.arguments())
        return module.to(DTYPES[self.dtype])

    def inputs(self) -> tuple[Tensor | PackedSequence, Tensor]:
        """The input, and the gradient that comes back to the output: of ``y``, or of ``y.data`` when packed."""
        shape = self.shape
        generator = torch.Generator(self.device).manual_seed(7)
        dtype = DTYPES[self.dtype]
        padded = torch.randn(shape.T, shape.B, shape.I, generator=generator, device=self.device)
        rows = sum(shape.lengths())
        sizes = (rows,) if shape.packed else (shape.T, shape.B)
        dy = torch.randn(*sizes, shape.directions * shape.H, generator=generator, device=self.device)
        if shape.last:
            dy[:-1] = 0
        if not shape.packed:
            return padded.to(dtype), dy.to(dtype)
        x = pack_padded_sequence(padded, torch.tensor(shape.lengths(), device="cpu"))
        return x._replace(data=x.data.to(dtype)), dy.to(dtype)


def shapes(*texts: str) -> list[Shape]:
    return [Shape.parse(text) for text in texts]


# A plain call: small batches as in serving and control, batches as in training, one long sequence, one single step.
TABLE = shapes(
    "1,1,64,64",
    "100,1,64,64",
    "100,1,256,256",
    "100,1,512,512",
    "100,32,256,256",
    "100,64,512,512",
    "1000,8,64,64",
)
PACKED = shapes("200,16,64,64,packed", "100,32,256,256,packed")
STACKED = shapes("100,8,128,128,2l,bi", "100,16,256,256,2l")
# What docs/performance.md shows: T from 1 to 2000, B to 512, H from 32 to 1024, other sizes of the input, deep stacks.
GRID = shapes(
    *("1,1,256,256", "1,1,1024,1024", "1,16,256,256", "1,64,512,512", "1,512,128,128"),
    *("5,32,128,128", "5,256,512,512", "8,4,1024,1024", "8,256,1024,1024", "10,512,64,64"),
    *("20,1,512,512", "20,8,256,256", "20,64,256,256", "20,256,128,128", "20,128,1024,1024"),
    *("100,1,32,32", "100,1,128,128", "100,1,1024,1024", "100,4,64,64", "100,4,256,256"),
    *("100,16,128,128", "100,16,512,512", "100,256,64,64", "100,512,32,32", "100,128,256,256"),
    *("500,1,128,128", "500,4,256,256", "500,8,512,512", "500,16,64,64", "500,32,128,128"),
    *("2000,1,32,32", "2000,1,128,128", "2000,32,32,32", "1000,64,128,128"),
    *("100,32,40,128", "100,8,512,128", "200,1,16,64", "100,1,256,256,bi", "200,4,64,64,4l", "50,32,128,128,4l,bi"),
    *("500,8,128,128,2l,bi,packed", "1000,16,64,64,packed"),
)
LAST = shapes("400,32,8,64,last", "200,16,64,128,last", "1000,8,64,64,last")
OTHERS = shapes("100,1,256,256", "100,32,256,256")  # in the rarer dtypes
QUICK = shapes("1,1,64,64", "100,1,64,64", "100,1,256,256", "100,32,256,256", "200,16,64,64,packed")


def standard() -> Iterator[Case]:
    """What README's tables show."""
    for shape in [*TABLE, *PACKED, *STACKED]:
        for cell in CELLS:
            for mode in MODES:
                yield Case(cell, mode, "f32", shape)
    for cell in CELLS:
        yield Case(cell, "train", "f32", LAST[0])


def quick() -> Iterator[Case]:
    for shape in QUICK:
        for cell in CELLS:
            for mode in MODES:
                yield Case(cell, mode, "f32", shape)


def grid() -> Iterator[Case]:
    """The standard set and the grid in f32 and bf16, a little of the other dtypes and of relu."""
    for dtype in ("f32", "bf16"):
        for shape in [*TABLE, *PACKED, *STACKED, *GRID]:
            for cell in CELLS:
                for mode in MODES:
                    yield Case(cell, mode, dtype, shape)
        for shape in LAST:
            for cell in CELLS:
                yield Case(cell, "train", dtype, shape)
    for dtype in ("f16", "f64"):
        for shape in OTHERS:
            for cell in CELLS:
                for mode in MODES:
                    yield Case(cell, mode, dtype, shape)
    for mode in MODES:
        yield Case("RNN_RELU", mode, "f32", Shape(100, 32, 256, 256))
