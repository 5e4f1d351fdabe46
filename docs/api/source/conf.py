"""Sphinx makes the API reference, Markdown that reads well on the repository's page, out of docstrings: `make docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for github_markdown

project = "fused_rnn"
root_doc = "README"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "github_markdown"]

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"  # of what a module exports: the order of __all__
autodoc_inherit_docstrings = False  # torch documents what is torch's
autosummary_generate = False  # tables only
highlight_language = "python"
smartquotes_action = "D"  # dashes
napoleon_numpy_docstring = False
napoleon_use_ivar = False
napoleon_use_param = False  # "a, b: what they are" stays one entry
