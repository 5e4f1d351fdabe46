"""Whatever is public says what it is, and stands in the API reference, which `make docs` makes of the docstrings."""

import importlib
import inspect
import re
from functools import cached_property
from types import FunctionType

import pytest
import torch

import fused_rnn

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


@pytest.mark.parametrize("page", ["fused_rnn.md", "init.md", "diagnostics.md"])  # others need other libraries
def test_examples_run(pages, page):
    lstm = fused_rnn.LSTM(3, 4)
    names = {
        "fused_rnn": fused_rnn,
        "gradient_flow": fused_rnn.diagnostics.gradient_flow,
        **dict.fromkeys(("module", "lstm", "model"), lstm),
        "gru": fused_rnn.GRU(3, 4),
        "frames": torch.randn(2, 1, 3),
        "x": torch.randn(120, 2, 3),
        "targets": torch.randn(120, 2, 4),
        "criterion": torch.nn.functional.mse_loss,
        "loss": lambda outputs: outputs[0].sum(),
        "optimizer": torch.optim.SGD(lstm.parameters(), 0.1),
    }
    examples = re.findall(r"```python\n(.*?)```", pages[page], re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, page, "exec"), names)


def test_links_lead_somewhere(request, pages):
    for name, text in pages.items():
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for page, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", prose):
            if anchor:
                assert f'<a id="{anchor}"></a>' in pages[page or name], (name, anchor)
            else:
                assert (request.config.rootpath / "docs" / "api" / page).exists(), (name, page)
