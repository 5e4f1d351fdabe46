"""The ops as torch sees them: schema, fake kernels, loading. What they compute is test_loop.py's."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from devices import native_loops
from loop_cases import Case, forward, make
from pairs import KINDS, pair
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.library import opcheck
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves, tree_map_only

import fused_rnn
from fused_rnn import ops
from fused_rnn.ops import Save
from fused_rnn.reference import Activation, Cell, Variant

CASES = [
    Case(Cell.LSTM, D=2),
    Case(Cell.LSTM, P=4, D=2, packed=True),
    Case(Cell.LSTM, P=4, bias=False),
    Case(Cell.GRU, D=2, packed=True),
    Case(Cell.GRU, bias=False),
    Case(Cell.RNN_TANH, D=2),
    Case(Cell.RNN_RELU, packed=True),
    Case(Cell.RNN_LINEAR),
    Case(Cell.GRU, B=0, D=2),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# The ops have no autograd formula by design, so opcheck's test of it has nothing to look at.
UTILS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


def _forward_args(problem, save=Save.ALL):
    return problem.x, problem.h0, problem.c0, problem.weights, problem.batch_sizes, int(problem.cell), int(save)


def _backward_args(problem, save=Save.ALL, **changes):
    y, _, _, saved = forward(problem, save)
    douts = [changes.get(name, getattr(problem, name)) for name in ("dy", "dhn", "dcn")]
    x, h0, c0, weights, batch_sizes, cell, _ = _forward_args(problem)
    return *douts, x, h0, c0, weights, y, saved, batch_sizes, cell


@pytest.mark.parametrize("case", CASES, ids=str)
class TestOpcheck:
    @pytest.mark.parametrize("save", Save)
    def test_forward(self, case, save):
        opcheck(torch.ops.fused_rnn.layer_forward.default, _forward_args(make(case), save), test_utils=UTILS)

    @pytest.mark.parametrize("needs", [-1, 0, 0b101001])
    def test_backward(self, case, needs):
        needs &= (1 << (3 + len(make(case).weights))) - 1
        op = torch.ops.fused_rnn.layer_backward.default
        opcheck(op, (*_backward_args(make(case)), needs), test_utils=UTILS)
        opcheck(op, (*_backward_args(make(case), dhn=None, dcn=None), needs), test_utils=UTILS)
        opcheck(op, (*_backward_args(make(case), Save.STATES), needs), test_utils=UTILS)

    def test_backward_gates(self, case):
        op = torch.ops.fused_rnn.layer_backward_gates.default
        opcheck(op, _backward_args(make(case)), test_utils=UTILS)
        opcheck(op, _backward_args(make(case), dy=None), test_utils=UTILS)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_opcheck_with_a_reset(packed):
    problem = make(Case(Cell.LSTM, P=4, D=2, packed=packed, reset="initial"))
    resets = {"reset": problem.reset, "reset_initial": True}
    needs = (1 << (3 + len(problem.weights))) - 1
    opcheck(torch.ops.fused_rnn.layer_forward.default, _forward_args(problem), resets, test_utils=UTILS)
    opcheck(torch.ops.fused_rnn.layer_backward.default, (*_backward_args(problem), needs), resets, test_utils=UTILS)
    opcheck(torch.ops.fused_rnn.layer_backward_gates.default, _backward_args(problem), resets, test_utils=UTILS)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_opcheck_with_gradients_of_cells(packed):
    problem = make(Case(Cell.LSTM, P=4, D=2, packed=packed, cells=True))
    args, cells, needs = _backward_args(problem), {"dcells": problem.dcells}, (1 << (3 + len(problem.weights))) - 1
    opcheck(torch.ops.fused_rnn.layer_backward.default, (*args, needs), cells, test_utils=UTILS)
    opcheck(torch.ops.fused_rnn.layer_backward_gates.default, args, cells, test_utils=UTILS)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(
    "case",
    [
        Case(Cell.LSTM, P=4, D=2, variant=Variant(Activation.SOFTSIGN, peephole=True)),
        Case(Cell.LSTM, P=4, D=2, variant=Variant(Activation.SOFTSIGN, peephole=True, coupled=True)),
        Case(Cell.GRU, D=2, variant=Variant(reset_before=True)),
        Case(Cell.LSTM, P=4, D=2, variant=Variant(peephole=True, layer_norm=True)),
        Case(Cell.GRU, D=2, variant=Variant(layer_norm=True)),
    ],
    ids=str,
)
def test_opcheck_with_a_variant(case, packed):
    problem = make(replace(case, packed=packed))
    option = {"variant": list(map(float, case.variant))}
    needs = (1 << (3 + len(problem.weights))) - 1
    opcheck(torch.ops.fused_rnn.layer_forward.default, _forward_args(problem), option, test_utils=UTILS)
    for args in (_backward_args(problem), _backward_args(problem, Save.STATES)):
        opcheck(torch.ops.fused_rnn.layer_backward.default, (*args, needs), option, test_utils=UTILS)
        if not case.variant.layer_norm:
            opcheck(torch.ops.fused_rnn.layer_backward_gates.default, args, option, test_utils=UTILS)


def _strided(tensor):
    return torch.stack([tensor, tensor], -1)[..., 0] if tensor.is_floating_point() else tensor


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_fake_results_are_like_the_real_ones(case, dtype):
    """Of arguments in another layout than contiguous too, which no result is to copy."""
    problem = make(case, dtype)
    every = (1 << (3 + len(problem.weights))) - 1
    calls = [
        *((ops.layer_forward, _forward_args(problem, save)) for save in Save),
        (ops.layer_backward, (*_backward_args(problem), every)),
        (ops.layer_backward, (*_backward_args(problem, Save.STATES), every)),
        (ops.layer_backward_gates, _backward_args(problem)),
    ]
    for op, args in calls:
        args = tree_map_only(torch.Tensor, _strided, args)
        real = tree_leaves(op(*args))
        with FakeTensorMode() as mode:
            fake = tree_leaves(op(*tree_map_only(torch.Tensor, mode.from_tensor, args)))
        for r, f in zip(real, fake, strict=True):
            assert (r.shape, r.dtype, r.device) == (f.shape, f.dtype, f.device)
            assert r.is_contiguous()
            assert f.is_contiguous()


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_fake_kernels_guard_on_no_size(packed):
    """Every size stays a symbol, B one that nothing is known of: no specialisation, so no recompilation."""
    problem = make(Case(Cell.LSTM, P=4, D=2, packed=packed))
    shapes = ShapeEnv()
    with FakeTensorMode(shape_env=shapes) as mode:
        x = mode.from_tensor(problem.x)
        batch = shapes.create_unbacked_symint() if packed else x.shape[1]
        h0, c0 = x.new_empty(2, batch, 4), x.new_empty(2, batch, 9)
        weights = [mode.from_tensor(w, static_shapes=True) for w in problem.weights]
        sizes = mode.from_tensor(problem.batch_sizes) if packed else None
        before = len(shapes.guards)
        y, hn, cn, saved = ops.layer_forward(x, h0, c0, weights, sizes, 0, True)
        ops.layer_backward(y, hn, cn, x, h0, c0, weights, y, saved, sizes, 0, -1)
        ops.layer_backward_gates(y, hn, cn, x, h0, c0, weights, y, saved, sizes, 0)
        assert len(shapes.guards) == before
        rows = x.shape[0] if packed else x.shape[0] * x.shape[1]
        assert str(saved.shape[1]) == str(rows)
        assert hn.shape[1] is batch or str(hn.shape[1]) == str(batch)


def test_rows_of_a_packed_sequence():
    rows = ops.packed_rows(torch.tensor([5, 3, 1], device="cpu"))
    assert (rows, type(rows)) == (5, int)


def _import_copied(tmp_path: Path, library: bytes | None) -> str:
    """What `import fused_rnn.ops` says in a process where the package lies elsewhere, with this library file."""
    package = tmp_path / "fused_rnn"
    package.mkdir()
    needed = ("ops", "onnx_nodes", "onnx_forms", "layouts", "checks", "reference", "kinds", "regularisation", "philox")
    for name in needed:
        shutil.copy(Path(ops.__file__).with_name(name + ".py"), package)
    (package / "__init__.py").touch()
    if library is not None:
        (package / "libfused_rnn.so").write_bytes(library)
    done = subprocess.run(
        [sys.executable, "-c", "import fused_rnn.ops"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    return done.stderr.strip().splitlines()[-1]


def test_a_missing_library_says_how_to_build_it(tmp_path):
    message = _import_copied(tmp_path, None)
    assert message.startswith("ImportError: fused_rnn: its op library libfused_rnn.so is missing from")
    assert "pip install --no-build-isolation ." in message


def test_a_broken_library_says_so(tmp_path):
    message = _import_copied(tmp_path, b"not a library")
    assert message.startswith("ImportError: fused_rnn: ")
    assert f"does not load under torch {torch.__version__}" in message


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0", "weight_ih_l1"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_left_on_meta(kind, name, training):
    """As ``load_state_dict(..., assign=True)`` of too few leaves it behind. A single tensor on meta brings a call to
    the op's shapes, which are memory that nothing has written to."""
    theirs, ours = pair(kind, 3, 4, 2)
    for module in (theirs, ours):
        setattr(module, name, nn.Parameter(getattr(module, name).to("meta")))
    x = torch.zeros(5, 2, 3)
    with torch.set_grad_enabled(training):
        with native_loops(), pytest.raises(RuntimeError) as error:
            theirs(x)
        for given in (x, pack_padded_sequence(x, [5, 2])):  # for which torch gives garbage
            with pytest.raises(RuntimeError, match=re.escape(str(error.value))):
                ours(given)


@pytest.mark.parametrize("name", ["weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell"])
def test_a_parameter_of_a_cell_left_on_meta(kind, name):
    cell = getattr(fused_rnn, kind)(3, 4)
    setattr(cell, name, nn.Parameter(getattr(cell, name).to("meta")))
    with pytest.raises(RuntimeError):
        cell(torch.zeros(2, 3))
