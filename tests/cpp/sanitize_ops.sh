#!/usr/bin/env bash
# The op library itself under the address and undefined behaviour sanitizers: built beside the in-place build, the tests
# of the ops run on it. PYTHON names an environment with torch; about five minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
ROOT=$PWD
PYTHON=$(realpath -s "${PYTHON:-.venv/bin/python}")
OUT=$(realpath -m "${OUT:-build/sanitize}")/ops
CXX=${CXX:-g++}

mkdir -p "$OUT/lib/fused_rnn"
PATH="$(dirname "$PYTHON"):$PATH" FUSED_RNN_SANITIZE=address,undefined "$PYTHON" setup.py --quiet build_ext \
    --build-lib "$OUT/lib" --build-temp "$OUT/temp"
find fused_rnn -name "*.py" -exec cp --parents {} "$OUT/lib" \;
cd "$OUT/lib"
# Python itself is not instrumented: the runtime must be there before it. It never frees all, hence no leak check.
LD_PRELOAD="$($CXX -print-file-name=libasan.so) $($CXX -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONPATH=$OUT/lib \
    "$PYTHON" -m pytest -q -p no:cacheprovider --rootdir "$ROOT" "$ROOT/tests/test_loop.py" \
    "$ROOT/tests/test_loop_inputs.py" "$ROOT/tests/test_exact.py" "$@"
