#!/usr/bin/env bash
# The CUDA time loops on the host (loops.cpp): every case, then a few under the thread sanitizer; then with one thing left
# out at a time (a meeting of a block's threads, the barrier between blocks, the wait for copies), which must be noticed.
# About three minutes on two cores, no GPU, no torch. CXX and OUT can be set.
set -euo pipefail
cd "$(dirname "$0")/../.."
CXX=${CXX:-g++}
OUT=${OUT:-build/simt}
FLAGS="-std=c++20 -O1 -g1 -Wall -Wextra -Wno-psabi -pthread"
SOURCES="tests/simt/loops.cpp csrc/cuda/plan.cpp csrc/cuda/cluster_plan.cpp csrc/cuda/limits.cpp"
export TSAN_OPTIONS="halt_on_error=1 report_signal_unsafe=0"
mkdir -p "$OUT"

$CXX $FLAGS $SOURCES -o "$OUT/loops" &
$CXX $FLAGS -fsanitize=thread $SOURCES -o "$OUT/loops_threads"
wait $!
"$OUT/loops" >"$OUT/loops.log" 2>&1 &
echo "== under the thread sanitizer"
"$OUT/loops_threads" quick
outcome=0
wait $! || outcome=$?
echo "== every case"
cat "$OUT/loops.log"
[ "$outcome" = 0 ]

# fault NAME: leaves it out, and tells whether that was noticed
fault() {
    if timeout 300 "$OUT/loops_threads" "--fault=$1" >"$OUT/$1.log" 2>&1; then
        echo "without $1: not noticed"
        return 1
    fi
    echo "without $1: noticed: $(grep -m1 -oE 'data race|FAILED .*|SEGV' "$OUT/$1.log")"
}
export -f fault
export OUT
printf '%s\n' copies sync{0..9} await | xargs -P 2 -I{} bash -c 'fault {}'
