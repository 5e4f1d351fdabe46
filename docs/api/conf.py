"""Sphinx makes the API reference out of docstrings: `make docs`."""

import fused_rnn

project = "fused_rnn"
author = "fused_rnn contributors"
release = version = fused_rnn.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

autodoc_default_options = {"members": True}
autodoc_member_order = "groupwise"
autodoc_inherit_docstrings = False  # torch documents what is torch's
maximum_signature_line_length = 100
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "alabaster"
html_theme_options = {"description": "API reference", "page_width": "1200px", "fixed_sidebar": True}
html_show_copyright = False
