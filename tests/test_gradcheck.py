"""Derivatives of a layer in eager mode: first, second and third order, every option, and what must raise."""

import pytest
import torch
from devices import on_cpu
from layer_cases import KINDS, assert_close, make_layer, scalar
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from fused_rnn import ops
from fused_rnn.ops import Save

OPTIONS = [
    *({"D": D, "packed": packed, "bias": bias} for D in (1, 2) for packed in (False, True) for bias in (True, False)),
    {"D": 2, "packed": True, "bias": True, "recompute": True},
    {"D": 1, "packed": False, "bias": False, "recompute": True},
]
RESETS = [
    {"D": D, "packed": packed, "recompute": packed, "reset": to}
    for D in (1, 2)
    for packed in (False, True)
    for to in ("zero", "initial")
]
# Derivatives of the second order and on run on the reference, some 100,000 small operations a test. Where each is a
# launch, every option is met once.
HIGHER = OPTIONS if on_cpu() else [{"D": 1, "packed": True, "bias": True}, {"D": 2, "packed": False, "bias": False}]
KEPT = [kind for kind in KINDS if not kind.startswith("lstm")]  # whose backward does not read y


def _name(options: dict) -> str:
    return "-".join(key + (value if isinstance(value, str) else str(int(value))) for key, value in options.items())


def _with_resets(options: list[dict]) -> list:
    return [pytest.param(o, id=_name(o)) for o in [*options, *RESETS]]


@pytest.mark.parametrize("options", _with_resets(OPTIONS))
@pytest.mark.parametrize("kind", KINDS)
class TestFirstOrder:
    def test_reverse_mode(self, kind, options):
        layer = make_layer(kind, **options)
        assert gradcheck(layer.ours, layer.leaves())

    def test_forward_mode_and_batched(self, kind, options):
        layer = make_layer(kind, **options)
        checks = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
        assert gradcheck(layer.ours, layer.leaves(), fast_mode=True, **checks)


@pytest.mark.parametrize("options", _with_resets(HIGHER))
@pytest.mark.parametrize("kind", KINDS)
class TestHigherOrders:
    def test_second(self, kind, options):
        layer = make_layer(kind, **options)
        checks = {"check_fwd_over_rev": True, "check_rev_over_rev": True, "check_batched_grad": True}
        assert gradgradcheck(layer.ours, layer.leaves(), fast_mode=True, **checks)

    def test_third(self, kind, options):
        layer = make_layer(kind, **options)

        def first(*leaves):
            return torch.autograd.grad(scalar(layer.ours)(*leaves), leaves, create_graph=True)

        assert gradgradcheck(first, layer.leaves(), fast_mode=True)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", KINDS)
class TestWhatIsAsked:
    """Gradients asked for, or given, one at a time."""

    def test_each_input_alone(self, kind, packed, monkeypatch):
        layer = make_layer(kind, D=2, packed=packed)
        leaves = layer.leaves()
        wanted = torch.autograd.grad(scalar(layer.theirs)(*leaves), leaves)
        asked = []
        run = ops.layer_backward

        def recorded(*args):
            asked.append(args[11])
            return run(*args)

        monkeypatch.setattr(ops, "layer_backward", recorded)
        bits = [0, 1, 2, *range(3, 3 + len(leaves))] if layer.states == 3 else [0, 1, *range(3, 3 + len(leaves))]
        for i, bit in zip(range(len(leaves)), bits, strict=False):
            args = [arg.clone().requires_grad_(i == j) for j, arg in enumerate(layer.args)]
            (got,) = torch.autograd.grad(scalar(layer.ours)(*args), args[i])
            assert_close(got, wanted[i])
            assert asked.pop() == 1 << bit  # what is frozen costs nothing

    def test_each_output_alone(self, kind, packed):
        layer = make_layer(kind, D=2, packed=packed)
        leaves = layer.leaves()
        for ours, theirs in zip(layer.ours(*leaves), layer.theirs(*leaves), strict=True):
            every = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
            # the gradient of a sum is expanded from one number
            got, wanted = (torch.autograd.grad(output.sum(), leaves, **every) for output in (ours, theirs))
            assert_close(got, wanted)

    def test_nothing_asked(self, kind, packed):
        layer = make_layer(kind, packed=packed)
        leaves = layer.leaves()
        assert all(output.grad_fn is None for output in layer.ours(*layer.args))
        with torch.no_grad():
            assert not any(output.requires_grad for output in layer.ours(*leaves))
        with torch.inference_mode():
            assert all(output.is_inference() for output in layer.ours(*leaves))

    def test_without_a_gradient_nothing_is_saved(self, kind, packed, monkeypatch):
        layer = make_layer(kind, packed=packed)
        saves = []
        run = ops.layer_forward
        monkeypatch.setattr(ops, "layer_forward", lambda *args: (saves.append(args[6]), run(*args))[1])
        layer.ours(*layer.args)
        with torch.no_grad():
            layer.ours(*layer.leaves())
        layer.ours(*layer.leaves())
        assert saves == [Save.NOTHING, Save.NOTHING, Save.ALL]

    def test_undefined_gradients(self, kind, packed):
        """A Function downstream that gives None for everything: no gradient, and no kernel run for it."""

        class Nothing(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, dout):
                return None

        layer = make_layer(kind, packed=packed)
        leaves = layer.leaves()
        loss = sum(Nothing.apply(output).sum() for output in layer.ours(*leaves))
        assert torch.autograd.grad(loss, leaves, allow_unused=True) == (None,) * len(leaves)


@pytest.mark.parametrize("kind", KINDS)
class TestMemory:
    """What autograd keeps between forward and backward: guarded, handed to hooks, given up again."""

    def test_twice_through_one_graph(self, kind):
        layer = make_layer(kind, D=2)
        leaves = layer.leaves()
        loss = scalar(layer.ours)(*leaves)
        assert_close(torch.autograd.grad(loss, leaves, retain_graph=True), torch.autograd.grad(loss, leaves), 0)
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(loss, leaves)

    def test_the_same_tensor_in_several_places(self, kind):
        layer = make_layer(kind, I=5, P=0, D=2)
        x, h0, *rest = layer.leaves()
        args = [x, h0, *([h0] if layer.states == 3 else []), *rest[layer.states - 2 :]]
        args[-4:] = args[layer.states : layer.states + 4]  # both directions share their weights
        got, wanted = (torch.autograd.grad(scalar(f)(*args), [x, h0, *args[-4:]]) for f in (layer.ours, layer.theirs))
        assert_close(got, wanted)

    def test_changed_inputs_raise(self, kind):
        for i in range(len(make_layer(kind).args)):
            layer = make_layer(kind)
            args = [arg.clone() for arg in layer.leaves()]
            loss = scalar(layer.ours)(*args)
            with torch.no_grad():
                args[i].add_(1)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()

    def test_changed_lengths_raise(self, kind):
        layer = make_layer(kind, packed=True)
        loss = scalar(layer.ours)(*layer.leaves())
        layer.batch_sizes.sub_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_changed_final_states_do_not_matter(self, kind):
        layer = make_layer(kind)
        leaves = layer.leaves()
        wanted = torch.autograd.grad(layer.ours(*leaves)[0].sum(), leaves, materialize_grads=True, allow_unused=True)
        y, *states = layer.ours(*leaves)
        for state in states:
            state.zero_()
        got = torch.autograd.grad(y.sum(), leaves, materialize_grads=True, allow_unused=True)
        assert_close(got, wanted, 0)

    @pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled", "ignore:Error detected in _FusedLayer")
    def test_anomaly_mode(self, kind):
        layer = make_layer(kind)
        with torch.autograd.detect_anomaly(check_nan=True):
            leaves = layer.leaves()
            wanted = torch.autograd.grad(scalar(layer.theirs)(*leaves), leaves)
            assert_close(torch.autograd.grad(scalar(layer.ours)(*leaves), leaves), wanted)
            leaves[0].data.fill_(float("nan"))
            with pytest.raises(RuntimeError, match=r"_FusedLayerBackward.* returned nan"):
                layer.ours(*leaves)[0].sum().backward()

    def test_saved_tensors_hooks(self, kind):
        layer = make_layer(kind, packed=True)
        leaves = layer.leaves()
        wanted = torch.autograd.grad(scalar(layer.theirs)(*leaves), leaves)
        packed = []

        def pack(tensor):
            packed.append(tensor)
            return tensor.numpy(force=True), tensor.device

        with saved_tensors_hooks(pack, lambda kept: torch.from_numpy(kept[0]).to(kept[1])):
            loss = scalar(layer.ours)(*leaves)
        assert_close(torch.autograd.grad(loss, leaves), wanted)
        # x, states, lengths, y, saved, weights; sin() of each output its argument
        assert len(packed) == len(leaves) + 3 + layer.states
        with save_on_cpu():
            loss = scalar(layer.ours)(*leaves)
        assert_close(torch.autograd.grad(loss, leaves), wanted)

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpoint(self, kind, reentrant):
        layer = make_layer(kind)
        leaves = layer.leaves()
        wanted = torch.autograd.grad(scalar(layer.theirs)(*leaves), leaves)
        scalar(lambda *args: checkpoint(layer.ours, *args, use_reentrant=reentrant))(*leaves).backward()
        assert_close([leaf.grad for leaf in leaves], list(wanted))


@pytest.mark.skipif(not on_cpu(), reason="elsewhere the backward reads y itself")
@pytest.mark.parametrize("kind", KEPT)
def test_changing_y_is_allowed(kind):
    layer = make_layer(kind, D=2)
    leaves = layer.leaves()
    wanted = torch.autograd.grad(layer.theirs(*leaves)[0].mul(2).sin().sum(), leaves)
    y = layer.ours(*leaves)[0]
    assert_close(torch.autograd.grad(y.mul_(2).sin().sum(), leaves), wanted)


@pytest.mark.parametrize("kind", ["lstm", "lstm-proj"])
def test_changing_y_of_an_lstm_raises(kind):
    layer = make_layer(kind)
    y = layer.ours(*layer.leaves())[0]
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("B", [0, 1])
def test_second_order_of_few_rows(kind, B):
    layer = make_layer(kind, B=B, T=1, D=2)
    leaves = layer.leaves()

    def second(function):
        first = torch.autograd.grad(scalar(function)(*leaves), leaves, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in first), leaves)

    assert_close(second(layer.ours), second(layer.theirs))
