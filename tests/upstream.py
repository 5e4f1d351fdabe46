"""PyTorch's own tests with our classes in place of torch's: which ones pass for torch and fail for us?

Use: unpack or check out PyTorch's source (only its ``test`` folder is read; an older one than the installed torch will
do) and run ``python tests/upstream.py /path/to/pytorch [-k EXPRESSION] [FILE ...]``. Every file is run twice, and the
difference of the two lists is printed; the exit status is 1 if a test that passes for torch does not for us.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

FILES = [
    "test/test_nn.py",
    "test/test_modules.py",
    "test/nn/test_packed_sequence.py",
    "test/test_fx.py",
    "test/test_jit.py",
    "test/test_autograd.py",
    "test/test_expanded_weights.py",
    "test/test_native_mha.py",
    "test/functorch/test_eager_transforms.py",
    "test/functorch/test_vmap.py",
]
EXPRESSION = "rnn or lstm or gru or packed or pack_"  # pytest compares without case
SWITCH = "FUSED_RNN_IN_PLACE_OF_TORCH"


def pytest_configure() -> None:
    """This file is also the plugin that puts ours in torch's place, before any test is imported."""
    if os.environ.get(SWITCH):
        import fused_rnn

        fused_rnn.patched().__enter__()


def outcomes(root: Path, file: str, expression: str, ours: bool) -> dict[str, str]:
    """Test -> passed, failed or skipped."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        here = Path(__file__).parent
        paths = [str(here), str(here.parent), str(root / "test"), os.environ.get("PYTHONPATH", "")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), SWITCH: "1" if ours else ""}
        command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-c", os.devnull, "--rootdir", str(root)]
        command += ["-p", "upstream", "-p", "no:cacheprovider", "-k", expression, "--junitxml", str(report)]
        done = subprocess.run([*command, str(root / file)], env=env, cwd=folder, capture_output=True, text=True)
        if not report.exists():
            print(f"{file}: no report (exit {done.returncode})\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
            return {}
        result = {}
        for case in ET.parse(report).iter("testcase"):
            kinds = {child.tag for child in case}
            state = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            result[f"{case.get('classname')}::{case.get('name')}"] = state
        return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="a PyTorch checkout")
    parser.add_argument("files", nargs="*", help="test files, relative to it")
    parser.add_argument("-k", dest="expression", default=EXPRESSION, help="which tests, as for pytest")
    options = parser.parse_args()
    worse = 0
    for file in options.files or FILES:
        if not (options.root / file).exists():
            print(f"{file}: not in this checkout")
            continue
        theirs, ours = (outcomes(options.root.resolve(), file, options.expression, flag) for flag in (False, True))
        count = {state: list(theirs.values()).count(state) for state in ("passed", "failed", "skipped")}
        print(f"{file}: torch {count}")
        for test in sorted({*theirs, *ours}):
            before, after = theirs.get(test, "absent"), ours.get(test, "absent")
            if before != after:
                print(f"  {test}: torch {before}, ours {after}")
                worse += before == "passed"
    print(f"{worse} tests that pass for torch do not for us")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
