"""Whatever is public says what it is, and stands in the API reference, which `make docs` makes of the docstrings."""

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


@pytest.fixture(scope="module")
def pages(request):
    """The reference in the repository, by the names of its pages."""
    folder = request.config.rootpath / "docs" / "api"
    return {page.name: page.read_text() for page in folder.glob("*.md")}


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore::DeprecationWarning")  # Sphinx's own
def test_is_what_the_docstrings_say(request, tmp_path, pages):
    """Word by word: between versions of Sphinx and Python marks may differ."""
    pytest.importorskip("sphinx_markdown_builder")
    from sphinx.cmd.build import build_main

    source = request.config.rootpath / "docs" / "api" / "source"
    assert build_main(["-q", "-W", "-b", "markdown", "-d", str(tmp_path / "cache"), str(source), str(tmp_path)]) == 0
    made = {page.name: page.read_text() for page in tmp_path.glob("*.md")}
    assert made.keys() == pages.keys()
    for name, text in made.items():
        assert re.findall(r"\w+", pages[name]) == re.findall(r"\w+", text), f"docs/api/{name} is old: make docs"


def test_has_every_public_name(pages):
    everything = "".join(pages.values())
    for path, thing in PUBLIC.items():
        if not inspect.ismodule(thing):
            assert f'<a id="{path}"></a>' in everything, path
            if not isinstance(thing, float):
                assert f"#{path})" in pages["README.md"], path
