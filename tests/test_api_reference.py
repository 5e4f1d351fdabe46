"""Whatever is public says what it is, and stands in the API reference that `make docs` makes of it."""

import importlib
import inspect
import re
from functools import cached_property
from types import FunctionType

import pytest
import torch

pytestmark = pytest.mark.cpu_only("it reads docstrings")

MODULES = ["", ".functional", ".init", ".interchange", ".onnx", ".diagnostics", ".diagnostics.plots"]
PUBLIC = {
    f"fused_rnn{module}.{name}": getattr(importlib.import_module("fused_rnn" + module), name)
    for module in MODULES
    for name in importlib.import_module("fused_rnn" + module).__all__
}


def described(thing):
    """It, and of a class whatever is public in it and torch does not have too."""
    yield "", thing
    if inspect.isclass(thing):
        others = [*thing.__mro__[1:], getattr(torch.nn, thing.__name__, object)]
        for name, member in vars(thing).items():
            if isinstance(member, FunctionType | property | cached_property) and not name.startswith("_"):
                if not any(hasattr(other, name) for other in others):
                    yield "." + name, member


@pytest.mark.parametrize("path", [path for path, thing in PUBLIC.items() if not isinstance(thing, float)])
def test_has_a_docstring(path):
    for name, thing in described(PUBLIC[path]):
        assert thing.__doc__, path + name
        assert len(thing.__doc__) > 10, path + name


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore::DeprecationWarning")  # Sphinx's own
def test_reference(request, tmp_path):
    """Without a warning, with every public name and what it says."""
    pytest.importorskip("sphinx")
    from sphinx.cmd.build import build_main

    pages = request.config.rootpath / "docs" / "api"
    assert build_main(["-q", "-W", "-b", "text", str(pages), str(tmp_path)]) == 0
    text = (tmp_path / "index.txt").read_text()
    for path, thing in PUBLIC.items():
        if not inspect.ismodule(thing):
            assert re.search(rf"^(class )?{re.escape(path)}\b", text, re.MULTILINE), path
    for module in MODULES:
        assert f"\nfused_rnn{module}\n===" in text
    assert "**recompute** -- keep only c_t of each step" in " ".join(text.split())
