"""``torch.func`` over a layer: every transform, alone and nested, gives what it gives over the reference."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from layer_cases import KINDS, Layer, assert_close, make_layer, scalar
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

import fused_rnn
from fused_rnn import transforms

V = 3


def _all(layer: Layer) -> tuple[int, ...]:
    return tuple(range(len(layer.args)))


def _examples(layer: Layer, *leading: int) -> tuple[torch.Tensor, ...]:
    """Input and states of several examples."""
    return _several(layer.args[: layer.states], *leading)


def _several(args, *leading: int) -> tuple[torch.Tensor, ...]:
    """Other values of these shapes: the same at each call, and no random operation, which vmap would refuse."""

    def values(i, shape):
        return torch.arange(1.0, shape.numel() + 1, dtype=torch.float64).mul(7.3 + i).sin().reshape(shape)

    return tuple(values(i, torch.Size([*leading, *a.shape])) for i, a in enumerate(args))


def _weights(layer: Layer) -> tuple[torch.Tensor, ...]:
    return layer.args[layer.states :]


def _over_examples(layer: Layer) -> tuple:
    return (0,) * layer.states + (None,) * len(_weights(layer))


def _squares(gradients) -> torch.Tensor:
    return sum(g.square().sum() for g in gradients)


def _gradient(f, layer):
    return grad(scalar(f), _all(layer))


def _second(f, layer):
    return grad(lambda *args: _squares(_gradient(f, layer)(*args)), _all(layer))


def _third(f, layer):
    return grad(lambda *args: _squares(_second(f, layer)(*args)), _all(layer))


def _directional(f, layer):
    return lambda *args: jvp(scalar(f), args, _several(args))[1]


def _moved(f, layer):
    """Mapped axes in places other than the front, and an output axis too."""
    dims = (1, 2, 0)[: layer.states]
    examples = [a.movedim(0, dim) for a, dim in zip(_examples(layer, V), dims, strict=True)]
    return vmap(f, dims + (None,) * len(_weights(layer)), out_dims=1)(*examples, *_weights(layer))


def _loss_of_mapped_gradients(f, layer):
    """Per-sample gradients, differentiated again by the weights: the outermost transform watches the folded call."""

    def loss(*weights):
        return _squares(vmap(_gradient(f, layer), _over_examples(layer))(*_examples(layer, V), *weights))

    return grad(loss, tuple(range(len(_weights(layer)))))(*_weights(layer))


def _jvp_of_mapped_gradients(f, layer):
    weights = _weights(layer)
    per_sample = vmap(_gradient(f, layer), _over_examples(layer))
    return jvp(lambda *ws: per_sample(*_examples(layer, V), *ws), weights, _several(weights))


def _used_later(f, layer):
    """A vjp whose function has been left: what it saved outlived its transform."""
    outputs, pull = vjp(f, *layer.args)
    return pull(_several(outputs)), pull(outputs)


def _closed_over(f, layer):
    """The inner derivative is by x only, the outer by what the inner takes for constants."""
    x, *others = layer.args
    return grad(lambda *others: grad(lambda x: scalar(f)(x, *others))(x).square().sum(), (0, 1, 2))(*others)


TRANSFORMS = {
    "grad": lambda f, layer: _gradient(f, layer)(*layer.args),
    "grad of grad": lambda f, layer: _second(f, layer)(*layer.args),
    "grad of grad of grad": lambda f, layer: _third(f, layer)(*layer.args),
    "grad of grad of others": _closed_over,
    "vjp used later": _used_later,
    "jvp": lambda f, layer: jvp(f, layer.args, _several(layer.args)),
    "jvp by x": lambda f, layer: jvp(lambda x: f(x, *layer.args[1:]), layer.args[:1], _several(layer.args[:1])),
    "jvp of grad": lambda f, layer: jvp(_gradient(f, layer), layer.args, _several(layer.args)),
    "jvp of jvp": lambda f, layer: jvp(_directional(f, layer), layer.args, _several(layer.args)),
    "jvp of jvp of grad": lambda f, layer: jvp(
        lambda *args: jvp(_gradient(f, layer), args, _several(args))[1], layer.args, _several(layer.args)
    ),
    "grad of jvp": lambda f, layer: grad(_directional(f, layer), _all(layer))(*layer.args),
    "jacrev": lambda f, layer: jacrev(f, _all(layer))(*layer.args),
    "jacrev in chunks": lambda f, layer: jacrev(f, (0, 3), chunk_size=7)(*layer.args),
    "jacfwd": lambda f, layer: jacfwd(f, _all(layer))(*layer.args),
    "hessian": lambda f, layer: hessian(scalar(f), (0, 1, 2))(*layer.args),
    "jacfwd of jacfwd": lambda f, layer: jacfwd(jacfwd(scalar(f), 1), 0)(*layer.args),
    "jacrev of jacrev": lambda f, layer: jacrev(jacrev(scalar(f), 1), 0)(*layer.args),
    "vmap": lambda f, layer: vmap(f, _over_examples(layer))(*_examples(layer, V), *_weights(layer)),
    "vmap over x": lambda f, layer: vmap(f, (0,) + (None,) * (len(layer.args) - 1))(
        _examples(layer, V)[0], *layer.args[1:]
    ),
    "vmap over h0": lambda f, layer: vmap(f, (None, 0) + (None,) * (len(layer.args) - 2))(
        layer.args[0], _examples(layer, V)[1], *layer.args[2:]
    ),
    "vmap moved": _moved,
    "vmap of vmap": lambda f, layer: vmap(vmap(f, _over_examples(layer)), _over_examples(layer))(
        *_examples(layer, 2, V), *_weights(layer)
    ),
    "vmap over weights": lambda f, layer: vmap(f, (None,) * layer.states + (0,) * len(_weights(layer)))(
        *layer.args[: layer.states], *_several(_weights(layer), V)
    ),
    "vmap over one weight": lambda f, layer: vmap(lambda w: f(*layer.args[:-1], w))(_several(layer.args[-1:], V)[0]),
    "vmap over all": lambda f, layer: vmap(f)(*_several(layer.args, V)),
    "vmap of grad": lambda f, layer: vmap(_gradient(f, layer), _over_examples(layer))(
        *_examples(layer, V), *_weights(layer)
    ),
    "vmap of grad over weights": lambda f, layer: vmap(
        _gradient(f, layer), (None,) * layer.states + (0,) * len(_weights(layer))
    )(*layer.args[: layer.states], *_several(_weights(layer), V)),
    "vmap of vmap of grad": lambda f, layer: vmap(
        vmap(_gradient(f, layer), _over_examples(layer)), _over_examples(layer)
    )(*_examples(layer, 2, V), *_weights(layer)),
    "vmap of grad of grad": lambda f, layer: vmap(_second(f, layer), _over_examples(layer))(
        *_examples(layer, V), *_weights(layer)
    ),
    "grad of vmap": lambda f, layer: grad(scalar(vmap(f, _over_examples(layer))), _all(layer))(
        *_examples(layer, V), *_weights(layer)
    ),
    "grad of vmap of grad": _loss_of_mapped_gradients,
    "jvp of vmap of grad": _jvp_of_mapped_gradients,
    "vmap of jvp": lambda f, layer: vmap(_directional(f, layer), _over_examples(layer))(
        *_examples(layer, V), *_weights(layer)
    ),
    "vmap of hessian": lambda f, layer: vmap(hessian(scalar(f), (0, 1)), _over_examples(layer))(
        *_examples(layer, V), *_weights(layer)
    ),
}

OPTIONS = {
    "padded": {},
    "packed": {"packed": True},
    "bidirectional": {"D": 2, "bias": False},
    "bidirectional-packed": {"D": 2, "packed": True},
    "recomputed": {"D": 2, "packed": True, "recompute": True},
}
RESETS = {
    "reset": {"reset": "zero"},
    "reset-packed": {"D": 2, "packed": True, "recompute": True, "reset": "zero"},
    "reset-to-initial": {"D": 2, "bias": False, "reset": "initial"},
    "reset-to-initial-packed": {"packed": True, "reset": "initial"},
}
EVERY = [pytest.param(options, id=name) for name, options in (OPTIONS | RESETS).items()]


@pytest.mark.parametrize("options", EVERY)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_transform(kind, transform, options):
    layer = make_layer(kind, T=3, B=3, H=4, **options)
    assert_close(transform(layer.ours, layer), transform(layer.theirs, layer), 1e-9)


def _of_masks(layer: Layer, function: str):
    """A function of a mask, then of the layer's own arguments."""
    return lambda mask, *args: getattr(replace(layer, reset=mask), function)(*args)


def _gradient_of_masks(f, layer):
    return lambda mask, *args: _gradient(partial(f, mask), layer)(*args)


MASKED = {
    "vmap over masks": lambda f, layer, masks: vmap(f, (0,) + (None,) * len(layer.args))(masks, *layer.args),
    "vmap over examples": lambda f, layer, masks: vmap(f, (0, *_over_examples(layer)))(
        masks, *_examples(layer, V), *_weights(layer)
    ),
    "vmap moved": lambda f, layer, masks: vmap(f, (masks.dim() - 1, *_over_examples(layer)))(
        masks.movedim(0, -1), *_examples(layer, V), *_weights(layer)
    ),
    "vmap over weights": lambda f, layer, masks: vmap(f, (0,) + (None,) * layer.states + (0,) * len(_weights(layer)))(
        masks, *layer.args[: layer.states], *_several(_weights(layer), V)
    ),
    "vmap of grad": lambda f, layer, masks: vmap(_gradient_of_masks(f, layer), (0, *_over_examples(layer)))(
        masks, *_examples(layer, V), *_weights(layer)
    ),
    "vmap of grad over masks": lambda f, layer, masks: vmap(
        _gradient_of_masks(f, layer), (0,) + (None,) * len(layer.args)
    )(masks, *layer.args),
    "vmap of vmap of grad": lambda f, layer, masks: vmap(
        vmap(_gradient_of_masks(f, layer), (0, *_over_examples(layer))), (None, *_over_examples(layer))
    )(masks, *_examples(layer, 2, V), *_weights(layer)),
    "jvp of vmap of grad": lambda f, layer, masks: jvp(
        lambda *weights: vmap(_gradient_of_masks(f, layer), (0, *_over_examples(layer)))(
            masks, *_examples(layer, V), *weights
        ),
        _weights(layer),
        _several(_weights(layer)),
    ),
    "vmap of jvp": lambda f, layer, masks: vmap(
        lambda mask, *args: _directional(partial(f, mask), layer)(*args), (0, *_over_examples(layer))
    )(masks, *_examples(layer, V), *_weights(layer)),
    "grad of vmap": lambda f, layer, masks: grad(
        scalar(lambda *args: vmap(f, (0, *_over_examples(layer)))(masks, *args)), _all(layer)
    )(*_examples(layer, V), *_weights(layer)),
}


@pytest.mark.parametrize("options", RESETS.values(), ids=RESETS)
@pytest.mark.parametrize("transform", MASKED.values(), ids=MASKED)
@pytest.mark.parametrize("kind", KINDS)
def test_mapped_masks(kind, transform, options):
    layer = make_layer(kind, T=3, B=3, H=4, **options)
    masks = torch.rand(V, *layer.reset.shape) < 0.4
    got, want = (transform(_of_masks(layer, f), layer, masks) for f in ("ours", "theirs"))
    assert_close(got, want, 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_linearize(kind):
    """It traces the jvp: nothing in it may ask a tensor for its values, the lengths excepted."""
    layer = make_layer(kind, packed=True)
    got, want = (linearize(f, *layer.args)[1](*_several(layer.args)) for f in (layer.ours, layer.theirs))
    assert_close(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_per_sample_gradients_against_a_loop(kind):
    layer = make_layer(kind, D=2, packed=True)
    examples = _examples(layer, V)
    got = vmap(_gradient(layer.ours, layer), _over_examples(layer))(*examples, *_weights(layer))
    for v in range(V):
        leaves = [a.clone().requires_grad_() for a in (*(e[v] for e in examples), *_weights(layer))]
        assert_close([g[v] for g in got], list(torch.autograd.grad(scalar(layer.ours)(*leaves), leaves)))


@pytest.mark.parametrize("B", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_per_sample_gradients_of_few_rows(kind, B):
    layer = make_layer(kind, D=2, B=B, T=1)
    got, want = (TRANSFORMS["vmap of grad"](f, layer) for f in (layer.ours, layer.theirs))
    assert_close(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_weights_and_per_sample_gradients(kind):
    """Only some weights asked for: the others' gradients are not made, those asked for are unchanged."""
    layer = make_layer(kind, D=2)
    k = layer.states
    for asked in ((k,), (k + 1,), (k + 2, k + 3), (0,), (len(layer.args) - 1,)):
        got, want = (
            vmap(grad(scalar(f), asked), _over_examples(layer))(*_examples(layer, V), *_weights(layer))
            for f in (layer.ours, layer.theirs)
        )
        assert_close(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_without_a_derivative_keeps_requires_grad(kind):
    """A mapped call of leaves that require a gradient is differentiable in the ordinary way."""
    layer = make_layer(kind)
    examples = _examples(layer, V)
    grads = []
    for f in (layer.ours, layer.theirs):
        leaves = [w.clone().requires_grad_() for w in _weights(layer)]
        loss = scalar(vmap(f, _over_examples(layer)))(*examples, *leaves)
        grads.append(torch.autograd.grad(loss, leaves))
    assert_close(*grads)


@pytest.mark.parametrize("kind", KINDS)
def test_no_grad_inside_and_outside(kind):
    layer = make_layer(kind)
    with torch.no_grad():
        got, want = (_gradient(f, layer)(*layer.args) for f in (layer.ours, layer.theirs))
    assert_close(got, want)

    def blocked(*args):
        with torch.no_grad():
            return scalar(layer.ours)(*args)

    assert not any(g.any() for g in grad(blocked, _all(layer))(*layer.args))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vectorize", [False, True])
def test_functional_jacobians(kind, vectorize):
    """The older interface; its vectorized form maps the gradients in a way that no Function is told of."""
    layer = make_layer(kind, packed=True)
    got, want = (
        torch.autograd.functional.jacobian(f, layer.args, vectorize=vectorize) for f in (layer.ours, layer.theirs)
    )
    assert_close(got, want)
    got, want = (
        torch.autograd.functional.hessian(
            lambda x, h, f=f: scalar(f)(x, h, *layer.args[2:]), layer.args[:2], vectorize=vectorize
        )
        for f in (layer.ours, layer.theirs)
    )
    assert_close(got, want)


def test_ensemble_of_modules():
    """``stack_module_state`` and ``functional_call`` around a module that calls the layer."""

    class Net(torch.nn.Module):
        def __init__(self, layer: Layer) -> None:
            super().__init__()
            self.function, self.states = layer.ours, layer.args[1 : layer.states]
            self.w = torch.nn.ParameterList(torch.randn_like(w) for w in _weights(layer))

        def forward(self, x):
            return self.function(x, *self.states, *self.w)[0]

    layer = make_layer("gru", D=2)
    nets = [Net(layer) for _ in range(V)]
    params, buffers = torch.func.stack_module_state(nets)
    x = layer.args[0]
    got = vmap(lambda p, b: functional_call(nets[0], (p, b), (x,)))(params, buffers)
    assert_close(got, torch.stack([net(x) for net in nets]))


def test_mapped_lengths_raise():
    layer = make_layer("gru", packed=True)
    x, h0, *weights = layer.args
    from fused_rnn import autograd

    lengths = torch.stack([layer.batch_sizes] * V)
    with pytest.raises(NotImplementedError, match="vmap over the batch sizes of a packed sequence"):
        vmap(lambda sizes: autograd.layer(x, h0, None, weights, sizes, 1)[0])(lengths)


def test_maps_over_nothing_are_refused():
    module, none = fused_rnn.GRU(4, 5), torch.zeros(0, 3, 2, 4)
    parameters = dict(module.named_parameters())
    loss = lambda parameters, x: functional_call(module, parameters, (x,))[0].sum()  # noqa: E731
    for call in (lambda: vmap(lambda x: module(x)[0])(none), lambda: vmap(grad(loss), (None, 0))(parameters, none)):
        with pytest.raises(NotImplementedError, match="vmap over an axis of size 0"):
            call()


@pytest.mark.parametrize(
    ("options", "called"),
    [({}, {"reset": torch.zeros(3, 0, dtype=torch.bool), "reset_to": "initial"}), ({"recurrent_dropout": 0.2}, {})],
    ids=["reset", "dropout"],
)
def test_gradients_of_examples_that_are_empty_batches(options, called):
    module = fused_rnn.GRU(4, 5, **options)
    loss = lambda parameters, x: functional_call(module, parameters, (x,), called)[0].sum()  # noqa: E731
    maps = vmap(grad(loss), (None, 0), randomness="different")
    got = maps(dict(module.named_parameters()), torch.zeros(2, 3, 0, 4))
    assert all(not grads.any() and grads.shape == (2, *w.shape) for grads, w in zip(got.values(), module.parameters()))


def test_functionalize():
    """A level that neither differentiates nor maps."""
    module, x = fused_rnn.GRU(4, 5).requires_grad_(False), torch.randn(3, 2, 4)
    torch.testing.assert_close(torch.func.functionalize(lambda x: module(x)[0].sin())(x), module(x)[0].sin())


def test_what_differentiates():
    x, w = torch.zeros(1), torch.zeros(1, requires_grad=True)
    assert transforms.differentiates(x, None, w)
    assert not transforms.differentiates(x, None)
    with torch.no_grad():
        assert not transforms.differentiates(w)
        assert torch.func.vmap(lambda x: torch.tensor(transforms.differentiates(x)))(x).all()
        with torch.autograd.forward_ad.dual_level():
            assert transforms.differentiates(x)
