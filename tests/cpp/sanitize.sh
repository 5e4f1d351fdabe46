#!/usr/bin/env bash
# The time loops alone (loops.cpp with csrc/cpu, no torch, no Python) under the address, the undefined behaviour and the thread
# sanitizer, a build each, as the first two in one compile 1.7 times as long as apart; then with what threads wait by taken
# out, which the thread sanitizer must notice. About eight minutes on two cores. CXX, JOBS and OUT can
# be set; WITH_TORCH=1 also runs the loop tests of the op library built with the address sanitizer (three minutes more; needs
# the Python environment that PYTHON names).
set -euo pipefail
cd "$(dirname "$0")/../.."
CXX=${CXX:-g++}
JOBS=${JOBS:-2}
OUT=${OUT:-build/sanitize}
FLAGS="-std=c++20 -Og -g1 -ffp-contract=fast -fno-omit-frame-pointer -Wno-psabi"
SOURCES="csrc/cpu/isa_amx.cpp csrc/cpu/isa_avx512.cpp csrc/cpu/isa_avx2.cpp csrc/cpu/isa_generic.cpp csrc/cpu/dispatch.cpp csrc/cpu/team.cpp csrc/cpu/crowd.cpp csrc/cpu/memory.cpp tests/cpp/loops.cpp"

# build FOLDER FLAGS...: compiles and links FOLDER/loops
build() {
    local to=$OUT/$1
    shift
    mkdir -p "$to"
    for source in $SOURCES; do
        echo "$CXX $FLAGS $* -c $source -o $to/$(basename "$source" .cpp).o"
    done | xargs -P "$JOBS" -I{} sh -c '{}'
    $CXX "$@" "$to"/*.o -o "$to/loops" -pthread
}

# run FOLDER ARGUMENTS...: FOLDER/loops beside whatever comes next; finish: its outcome
run() {
    running=$1
    shift
    "$OUT/$running/loops" "$@" >"$OUT/$running/log" 2>&1 &
    process=$!
}
finish() {
    local outcome=0
    wait "$process" || outcome=$?
    echo "== $running"
    cat "$OUT/$running/log"
    return $outcome
}

rm -rf "$OUT"
build address -fsanitize=address
run address
build undefined -fsanitize=undefined -fno-sanitize-recover=undefined
finish
run undefined
build thread -O1 -fsanitize=thread  # it computes for longer than it compiles
finish
export TSAN_OPTIONS=halt_on_error=1
run thread quick

mkdir -p "$OUT/broken"
cp "$OUT"/thread/*.o "$OUT/broken"
for wait in barrier_wait progress_wait; do
    echo "== thread, $wait taken out: a race must be found"
    $CXX $FLAGS -fsanitize=thread -D$wait=${wait}_of_team -c csrc/cpu/team.cpp -o "$OUT/broken/team.o"
    $CXX $FLAGS -fsanitize=thread -Dwithout_$wait -c tests/cpp/no_wait.cpp -o "$OUT/broken/no_wait.o"
    $CXX -fsanitize=thread "$OUT"/broken/*.o -o "$OUT/broken/loops" -pthread
    if "$OUT/broken/loops" quick >"$OUT/broken/log" 2>&1; then
        echo "it was not noticed"
        exit 1
    fi
    grep -m1 "WARNING: ThreadSanitizer: data race" "$OUT/broken/log"
done
finish

if [ -n "${WITH_TORCH:-}" ]; then
    echo "== the op library under torch: address and undefined behaviour"
    tests/cpp/sanitize_ops.sh
fi
echo "sanitizers: clean"
