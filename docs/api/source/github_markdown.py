"""Markdown as GitHub shows it, on top of sphinx-markdown-builder: a heading for each class and function, a list of
what a class has, signatures as code, parameters as a list under their name."""

import re
import textwrap

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx_markdown_builder.contexts import IndentContext, SubContext, SubContextParams, TitleContext
from sphinx_markdown_builder.escape import escape_markdown_chars
from sphinx_markdown_builder.translator import MarkdownTranslator

WIDTH = 100  # of a signature (which is "py": "python" is code that runs)


def signature(node: addnodes.desc_signature) -> str:
    """In one line, or with the parameters in lines of their own."""
    before, after = "", ""
    parameters = None
    for part in node.children:
        if isinstance(part, addnodes.desc_parameterlist):
            parameters = [parameter.astext() for parameter in part.findall(addnodes.desc_parameter)]
        elif parameters is None:
            before += part.astext()
        else:
            after += part.astext()
    if parameters is None:
        return before
    # What Sphinx leaves in types: 9.0 has lists of dots, 8 the paths of names that it means to shorten.
    parameters = [re.sub(r"~[\w.]+\.", "", text.replace("[[...]", "[...")) for text in parameters]
    line = f"{before}({', '.join(parameters)}){after}"
    if len(line) <= WIDTH:
        return line
    unbroken = ", ".join(text.replace(" ", "\0") for text in parameters) + ","  # lines end between parameters only
    filled = textwrap.fill(unbroken, WIDTH - 4, break_long_words=False, break_on_hyphens=False).replace("\0", " ")
    return f"{before}(\n{textwrap.indent(filled, '    ')}\n){after}"


class GitHubTranslator(MarkdownTranslator):
    def visit_desc(self, node: addnodes.desc) -> None:
        if isinstance(node.parent, addnodes.desc_content):  # a member of a class
            self._push_context(IndentContext("- ", only_first=True, params=SubContextParams(2, 2)))

    def depart_desc(self, node: addnodes.desc) -> None:
        if isinstance(node.parent, addnodes.desc_content):
            self._pop_context()

    def visit_desc_signature(self, node: addnodes.desc_signature) -> None:
        described = node.parent
        if node is not described.next_node(addnodes.desc_signature):
            raise nodes.SkipNode  # further overloads are for type checkers
        anchors = "".join(f'<a id="{anchor}"></a>' for anchor in node["ids"])
        name = node.next_node(addnodes.desc_name).astext()
        if described["objtype"] in ("attribute", "property"):
            self.add(f"{anchors}**`{signature(node).removeprefix('property ')}`**", suffix_eol=2)
            raise nodes.SkipNode
        if isinstance(described.parent, addnodes.desc_content):
            self.add(f"{anchors}**`{name}`**", suffix_eol=2)
        else:
            self.add(anchors, prefix_eol=2, suffix_eol=2)
            self._push_context(TitleContext(self.status.section_level + 1))
            self.add(name)
            self._pop_context()
        self.add(f"```py\n{signature(node)}\n```", prefix_eol=2, suffix_eol=2)
        raise nodes.SkipNode

    def visit_field_list(self, node: nodes.field_list) -> None:
        self.ensure_eol(2)

    depart_field_list = visit_field_list

    def visit_field(self, node: nodes.field) -> None:
        self._push_context(SubContext(SubContextParams(2, 2)))

    def depart_field(self, node: nodes.field) -> None:
        self._pop_context()

    def visit_field_name(self, node: nodes.field_name) -> None:
        self.add(f"**{node.astext()}**", suffix_eol=2)
        raise nodes.SkipNode

    def depart_field_name(self, node: nodes.field_name) -> None:
        pass

    def visit_literal_strong(self, node: addnodes.literal_strong) -> None:
        """Of "TypeError, ValueError" the comma is such a node too."""
        text = node.astext()
        self.add(f"**{text}**" if text.strip(", ") else text)
        raise nodes.SkipNode

    def depart_literal_strong(self, node: addnodes.literal_strong) -> None:
        pass

    def _fetch_ref_uri(self, node: nodes.reference) -> str:
        """A module is a page."""
        return super()._fetch_ref_uri(node).partition("#module-")[0]

    def visit_tbody(self, node: nodes.tbody) -> None:
        """A table of Markdown has a head, be it an empty one."""
        if not self.table_ctx.headers:
            self.table_ctx.headers.append([[""] for _ in node.next_node(nodes.row).children])
        super().visit_tbody(node)

    def visit_Text(self, node: nodes.Text) -> None:
        """Without what docutils left of an indentation, and with links to the pages that are named."""
        if not self.status.escape_text:
            super().visit_Text(node)
            return
        text = re.sub(r"\n +", "\n", escape_markdown_chars(node.astext()))
        self.add(re.sub(r"\bdocs/(\w+\.md)", r"[docs/\1](../\1)", text))


def no_constructor(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """The docstring of a number is that of `float`, what it is stands beside it in the page's source."""
    if what == "data":
        lines.clear()


def setup(app: Sphinx) -> None:
    app.setup_extension("sphinx_markdown_builder")
    app.set_translator("markdown", GitHubTranslator, override=True)
    app.connect("autodoc-process-docstring", no_constructor)
