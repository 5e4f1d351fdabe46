#!/usr/bin/env bash
# The CUDA time loops on the host (loops.cpp): every case, then a few under the thread sanitizer; then with one thing left
# out at a time (a meeting of a block's threads, the barrier between blocks, the wait for copies), which must be noticed.
# About three minutes on two cores, no GPU, no torch. CXX and OUT can be set.
set -euo pipefail
cd "$(dirname "$0")/../.."
CXX=${CXX:-g++}
OUT=${OUT:-build/simt}
FLAGS="-std=c++20 -O1 -g1 -Wall -Wextra -Wno-psabi -pthread"
SOURCES="tests/simt/loops.cpp csrc/cuda/plan.cpp csrc/cuda/limits.cpp"
export TSAN_OPTIONS="halt_on_error=1 report_signal_unsafe=0"
mkdir -p "$OUT"

$CXX $FLAGS $SOURCES -o "$OUT/loops" &
$CXX $FLAGS -fsanitize=thread $SOURCES -o "$OUT/loops_threads"
wait $!
echo "== every case"
"$OUT/loops"
echo "== under the thread sanitizer"
"$OUT/loops_threads" quick
for fault in sync0 sync1 sync2 sync3 sync4 await copies; do
    if timeout 300 "$OUT/loops_threads" "--fault=$fault" >"$OUT/$fault.log" 2>&1; then
        echo "without $fault: not noticed"
        exit 1
    fi
    echo "without $fault: noticed: $(grep -m1 -oE 'data race|FAILED .*|SEGV' "$OUT/$fault.log")"
done
