"""The pages are true: every code block of the README and of docs/ runs here, or is held against what it speaks of."""

import argparse
import ast
import os
import re
import shlex
import shutil
import subprocess
import textwrap
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import fused_rnn
from fused_rnn import cli
from fused_rnn.bench import cases, limits, run

os.environ.setdefault("KERAS_BACKEND", "torch")
pytestmark = pytest.mark.cpu_only("the pages are written for the CPU")

ROOT = Path(__file__).parents[1]
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]}
NEEDS = {  # other libraries, without which a page is skipped
    "docs/interchange.md": ["keras", "onnx", "onnxscript", "onnxruntime"],
    "docs/api/interchange.md": ["keras"],
    "docs/api/onnx.md": ["onnxscript"],
}
# Commands of bash blocks that do not run here, and why. All others do.
NOT_RUN = {
    'pip install ninja "pybind11>=2.13" "setuptools>=70.1"': "it installs; compared with pyproject.toml instead",
    "pip install --no-build-isolation .": "it builds the package anew, for a minute",
    # Of `make`, told what it would do:
    "make test": "it runs this suite",
    "make bench": "it takes two minutes; test_bench.py runs small shapes",
    "make simt": "it takes many minutes",
    "make docs": "it writes into the checkout; test_api_reference.py makes the pages elsewhere and compares",
    "make gpu": "it needs a GPU; test_gpu_script.py runs the script",
    'make bench BENCH="--out out"': "it takes many minutes",
    "make tables RESULTS=out/results.json": "it writes into the checkout; test_bench.py fills copies",
}


def blocks(page):
    """(language, text) of each fenced block, in lists too."""
    found, fence = [], ""
    for line in page.splitlines():
        mark = line.strip()
        if fence and mark == fence:
            fence = ""
        elif fence:
            found[-1][1].append(line)
        elif opening := re.match(r"(`{3,}|~{3,})\s*([^\s`]*)$", mark):
            fence = opening[1]
            found.append((opening[2], []))
    assert not fence, "a block without an end"
    return [(language, textwrap.dedent("\n".join(lines))) for language, lines in found]


BLOCKS = {page: blocks(text) for page, text in PAGES.items()}


def texts(page, language):
    return [text for found, text in BLOCKS[page] if found == language]


def with_blocks(language):
    return pytest.mark.parametrize("page", [page for page in PAGES if texts(page, language)])


def commands(page):
    """Lines of its bash blocks, without comments."""
    lines = "\n".join(texts(page, "bash")).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := re.sub(r"(^|\s)#.*", "", line).strip())]


COMMANDS = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_tested(page):
    kinds = {"python", "bash", "cpp"} | ({"py"} if page.startswith("docs/api/") else set())
    assert {language for language, _ in BLOCKS[page]} <= kinds, "say how it is tested, here"


def test_blocks_are_found():
    text = "```python\na = 1\n```\n\n- b\n\n  ~~~~bash\n  c\n  ~~~\n  ~~~~\n```\n```"
    assert blocks(text) == [("python", "a = 1"), ("bash", "c\n~~~"), ("", "")]
    assert PAGES["README.md"].count("\n```\n") == len(BLOCKS["README.md"]) > 10


# ---- Python -----------------------------------------------------------------------------------------


@pytest.fixture
def given(request):
    """What the examples of the API reference are told to work on; all other pages make it themselves."""
    page = request.node.callspec.params["page"]
    for library in NEEDS.get(page, []):
        pytest.importorskip(library)
    device = nullcontext()
    if "keras" in NEEDS.get(page, []):
        import keras

        device = keras.device("cpu")  # where there is a GPU it would take that
    with device:
        yield _given(page) if page.startswith("docs/api/") else {}


def _given(page):
    lstm = fused_rnn.LSTM(3, 4)
    names = {
        "torch": torch,
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
    if page == "docs/api/interchange.md":
        import keras

        names["layer"] = keras.layers.LSTM(4)
        names["layer"].build((None, None, 3))
    return names


@with_blocks("python")
@pytest.mark.filterwarnings("ignore")  # those of exporters and of Keras
@pytest.mark.usefixtures("threads")
def test_python(page, given, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # some write files
    for block in texts(page, "python"):
        exec(compile(block, page, "exec"), given)


# ---- the shell --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "command"), [(page, command) for page, command in COMMANDS if command not in NOT_RUN])
def test_command(page, command, monkeypatch, tmp_path, capsys, threads):
    program, *arguments = shlex.split(command)
    assert program == "fused-rnn", f"{command} of {page}: run it here, or say in NOT_RUN why not"
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "bench":  # of what comes twice the last counts: its shapes are read, and smaller ones measured
        threads(1)  # on a busy machine several would wait for each other
        arguments += ["--shapes", "9,3,4,8", "9,3,4,8,packed", "--rounds", "1", "--block-ms", "1", "--gap-ms", "0"]
        arguments += ["--no-memory"]
        machine = limits.Machine(2, dict.fromkeys(cases.DTYPES, 1e11), 32 << 10, 1 << 20, 1e11, 1e10)
        monkeypatch.setattr(limits, "measure", lambda dtypes, device: machine)
    if "cuda" in arguments:  # as far as a machine without a GPU comes
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(SystemExit, match="no CUDA device"):
            cli.main(arguments)
        return
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out
    if "--out" in arguments:
        results = {"bench": "results.json", "gradflow": "gradflow.png"}
        assert (Path(arguments[arguments.index("--out") + 1]) / results[arguments[0]]).stat().st_size > 1000


def test_what_does_not_run_is_there():
    assert set(NOT_RUN) <= {command for _, command in COMMANDS}


@pytest.mark.parametrize("command", [command for command in NOT_RUN if command.startswith("make ")])
def test_make_knows_the_target(command):
    if shutil.which("make") is None:
        pytest.skip("needs make")
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKEOVERRIDES")}
    dry = [*shlex.split(command), "--dry-run", "--no-print-directory"]
    done = subprocess.run(dry, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    for arguments in re.findall(r"-m benchmarks (.*)", done.stdout.replace("\\\n", " ")):
        parser.parse_args(shlex.split(arguments))


def test_what_a_build_needs():
    (command,) = (command for command in NOT_RUN if "ninja" in command)
    required = re.search(r"^requires = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert required
    assert sorted(shlex.split(command)[2:]) == sorted(ast.literal_eval(required[1]))


# ---- what is quoted, and links ----------------------------------------------------------------------


@with_blocks("cpp")
def test_quoted_code_is_there(page):
    """A page derives what the kernels compute, not what they once did."""
    lines = {line.strip() for line in (ROOT / "csrc" / "core" / "cells.h").read_text().splitlines()}
    for line in "\n".join(texts(page, "cpp")).splitlines():
        assert line in lines


@with_blocks("py")
def test_signatures_are_no_examples(page):
    """They stand right below names: Sphinx makes them from the code, and test_api_reference.py compares."""
    above = re.findall(r"^(.*)\n\n *```py$", PAGES[page], re.MULTILINE)
    assert len(above) == len(texts(page, "py"))
    assert all(re.match(r'##+ |- <a id="', line) for line in above)


def prose(page):
    return re.sub(r"^\s*```.*?^\s*```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """What a link may name behind #: headings, as GitHub spells them, and marks."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    spelled = (re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings)
    return {*spelled, *re.findall(r'<a id="([^"]+)">', prose(page))}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", prose(page)):
        target = ((ROOT / page).parent / link).resolve() if link else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(str(target.relative_to(ROOT))), (link, anchor)


def test_every_page_is_in_the_index():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in PAGES["docs/README.md"]} == set()
