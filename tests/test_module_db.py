"""The database of module inputs that ships in torch's wheel, on our classes: values, gradients, layouts, errors."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from devices import device, native_loops
from pairs import flat
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import fused_rnn

pytest.importorskip("expecttest", reason="torch's test helpers import it")
with pytest.MonkeyPatch.context() as patch:
    # At its import it forbids every test of this process to set a flag of `torch.backends`.
    patch.setattr(torch.backends, "disable_global_flags", lambda: None)
    from torch.testing._internal.common_modules import module_db

NAMES = ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"]
ENTRIES = {
    entry.module_cls.__name__: entry for entry in module_db if entry.module_cls in [getattr(nn, n) for n in NAMES]
}
KEYWORDS = {"device": device(), "dtype": torch.float64}


@pytest.fixture(params=NAMES)
def entry(request):
    return ENTRIES[request.param]


def samples(entry, training, requires_grad=False):
    """(torch's module, ours, arguments) of each sample."""
    inputs = entry.module_inputs_func(entry, requires_grad=requires_grad, training=training, **KEYWORDS)
    for sample in inputs:
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = entry.module_cls(*args, **{**kwargs, **KEYWORDS}).train(training)
            ours = getattr(fused_rnn, entry.module_cls.__name__)(*args, **{**kwargs, **KEYWORDS}).train(training)
        ours.load_state_dict(theirs.state_dict())
        yield theirs, ours, sample.forward_input


def close(a, b):
    for got, expected in zip(flat(a), flat(b), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def mapped(function, value):
    """``function`` of every tensor in an argument."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, PackedSequence):
        return value._replace(data=function(value.data))
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(function, part) for part in value)
    return value


def strided(tensor):
    """The same values, every other element of something larger."""
    leaf = torch.stack([tensor, tensor], -1).detach()[..., 0]
    return leaf.requires_grad_(tensor.requires_grad)


@pytest.mark.parametrize("training", [False, True])
def test_forward(entry, training):
    for theirs, ours, given in samples(entry, training):
        torch.manual_seed(0)
        with native_loops():
            expected = theirs(*given.args, **given.kwargs)
        torch.manual_seed(0)
        close(ours(*given.args, **given.kwargs), expected)


def test_strided_inputs_and_parameters(entry):
    for theirs, ours, given in samples(entry, True, requires_grad=True):
        results = []
        for module, change in ((theirs, lambda t: t), (ours, strided)):
            module = copy.deepcopy(module)
            for name, parameter in list(module.named_parameters()):
                setattr(module, name, nn.Parameter(change(parameter.detach())))
            args = [mapped(change, arg) for arg in given.args]
            outputs = flat(module(*args, **given.kwargs))
            wanted = [t for t in [*flat(args), *module.parameters()] if t.requires_grad]
            results.append([*outputs, *torch.autograd.grad(sum(o.sum() for o in outputs), wanted, allow_unused=True)])
        for expected, got in zip(*results, strict=True):
            assert (expected is None) == (got is None)
            if got is not None:
                torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_gradcheck(entry):
    """Every fourth sample: the reference's tests go through all options."""
    for _, ours, given in list(samples(entry, True, requires_grad=True))[::4]:
        names, parameters = zip(*ours.named_parameters(), strict=True)
        tensors = [t for t in flat(list(given.args)) if t.requires_grad]

        def call(*values):
            replaced = dict(zip(map(id, tensors), values[len(parameters) :], strict=True))
            args = [mapped(lambda t: replaced.get(id(t), t), arg) for arg in given.args]
            return tuple(flat(torch.func.functional_call(ours, dict(zip(names, values, strict=False)), tuple(args))))

        assert torch.autograd.gradcheck(call, (*parameters, *tensors), fast_mode=True)


def test_errors(entry):
    kind = getattr(fused_rnn, entry.module_cls.__name__)
    count = 0
    for error in entry.module_error_inputs_func(entry, requires_grad=False, training=True, **KEYWORDS):
        made = error.module_error_input.constructor_input
        given = error.module_error_input.forward_input
        with pytest.raises(error.error_type, match=error.error_regex):
            kind(*made.args, **made.kwargs)(*given.args, **given.kwargs)
        count += 1
    assert count >= 4
