#!/usr/bin/env bash
# The CUDA time loops on the host (loops.cpp): every case, then a few under the thread sanitizer; then with one thing left
# out at a time (a meeting of a block's threads, the barrier between blocks, the wait for copies), which must be noticed.
# About five minutes on two cores, no GPU, no torch. CXX and OUT can be set.
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

# on CORE COMMAND..: on that core alone where one may choose, as a barrier between two of them takes twice the time
on() {
    local core=$1
    shift
    if taskset -c "$core" true 2>/dev/null; then taskset -c "$core" "$@"; else "$@"; fi
}
export -f on
on 1 "$OUT/loops" >"$OUT/loops.log" 2>&1 &
every=$!
on 1 "$OUT/loops_threads" variants >"$OUT/variants.log" 2>&1 &
variants=$!
echo "== under the thread sanitizer"
on 0 "$OUT/loops_threads" cells
# told NAME PID: what a program in the background had to say
told() {
    local outcome=0
    wait "$2" || outcome=$?
    cat "$OUT/$1.log"
    return "$outcome"
}
told variants "$variants"
echo "== every case"
told loops "$every"

# fault NAME CORE: leaves it out, and tells whether that was noticed
fault() {
    if on "$2" timeout 300 "$OUT/loops_threads" "--fault=$1" >"$OUT/$1.log" 2>&1; then
        echo "without $1: not noticed"
        return 1
    fi
    echo "without $1: noticed: $(grep -m1 -oE 'data race|FAILED .*|SEGV' "$OUT/$1.log")"
}
export -f fault
export OUT
printf '%s\n' copies sync{0..9} await | xargs -P 2 --process-slot-var=CORE -I{} bash -c 'fault {} "$CORE"'
