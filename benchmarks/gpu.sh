#!/usr/bin/env bash
# `make gpu`: everything that needs a GPU, in one go and under nine minutes. It builds for the device that is there,
# runs the suite on it, lets compute-sanitizer watch the kernels, and measures. It installs nothing: the python must
# have torch with CUDA, pytest, pytest-xdist, hypothesis, ninja, pybind11 and numpy; an nvcc must be in PATH or under
# CUDA_HOME.
#
#   PARTS             of: build test sanitize exchange bench (all)
#   OUT_DIR           where logs, results and plot go (out/gpu)
#   LIMIT_S           seconds for all of it (520): later parts get what earlier ones leave
#   TEST_S, TOOL_S, BENCH_S   the most for the suite (240), for one sanitizer (60), for the benchmark (225)
#   TEST_ARGS         pytest's arguments (-n 8 tests)
#   BENCH             the benchmark's (--grid)
#   PYTHON, MAX_JOBS  the python (python3); compilers at a time (one a processor)
#   FUSED_RNN_COMMIT  the commit, for a copy that came without its history
#
# Where a machine is lent for so long at a time, in three calls, the first two of which are as good as all:
#   PARTS="build test" TEST_S=480; PARTS="exchange bench" BENCH_S=450; PARTS=sanitize TOOL_S=150
#
# A failure is remembered and later parts still run, except on what was not built. The exit status is 1 when anything
# failed; a sanitizer that is missing or refuses the device is no failure, and is said.
# shellcheck disable=SC2317,SC2329  # functions that are called by names put together
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

PYTHON=${PYTHON:-python3}
PARTS=${PARTS:-build test sanitize exchange bench}
OUT_DIR=${OUT_DIR:-out/gpu}
LIMIT_S=${LIMIT_S:-520}
TEST_ARGS=${TEST_ARGS:--n 8 tests}
BENCH=${BENCH:---grid}
export PYTHONUNBUFFERED=1

REFUSED=77     # a part's status when a tool would not run here
TEST_S=${TEST_S:-240}
TOOL_S=${TOOL_S:-60}
BENCH_S=${BENCH_S:-225}
RESERVED_S=0 # for the benchmark, whatever the tests and the sanitizers take
[[ " $PARTS " == *" bench "* ]] && RESERVED_S=110

least() { echo "$(($1 < $2 ? $1 : $2))"; }
left() { echo "$((LIMIT_S - SECONDS))"; }
within() { # SECONDS COMMAND...: status 124 or 137 when time is up
    local seconds=$1
    shift
    if ((seconds < 1)); then
        echo "no time is left for: $*"
        return 124
    fi
    # It ends the command's whole process group, which Ctrl-C does not reach.
    timeout --kill-after=5 "$seconds" "$@" &
    # shellcheck disable=SC2064
    trap "kill $! 2>/dev/null" INT TERM
    wait $!
}

do_build() {
    FUSED_RNN_CUDA=1 TORCH_CUDA_ARCH_LIST="$arch" MAX_JOBS="${MAX_JOBS:-$(nproc)}" \
        within "$(least 240 "$(left)")" "$PYTHON" setup.py build_ext --inplace
}

do_test() {
    local seconds options=()
    seconds=$(least "$TEST_S" "$(($(left) - RESERVED_S))")
    # A kernel that hangs ends its test's worker, and that is named.
    "$PYTHON" -c 'import pytest_timeout' 2>/dev/null && options=(--timeout 60 --timeout-method thread)
    # Tests that would begin too late are skipped, so that pytest can still say what failed.
    # shellcheck disable=SC2086  # several arguments
    FUSED_RNN_TESTS_UNTIL=$(($(date +%s) + seconds - 20)) within "$seconds" \
        "$PYTHON" -m pytest --device=cuda -q --tb=short --maxfail=100 "${options[@]}" $TEST_ARGS
}

do_sanitize() {
    local sanitizer tool log seconds status worst=0 refused=0 options
    sanitizer=$(command -v compute-sanitizer "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" | head -n 1)
    if [ -z "$sanitizer" ]; then
        echo "VERDICT: compute-sanitizer was not found"
        return "$REFUSED"
    fi
    log=$(mktemp)
    for tool in memcheck racecheck synccheck; do
        options=(--tool "$tool" --kernel-name kns=fused_rnn --error-exitcode 86)
        [ "$tool" = memcheck ] && options+=(--report-api-errors no)
        seconds=$(least "$TOOL_S" "$(($(left) - RESERVED_S))")
        ((seconds < 30)) && seconds=0 # starting takes as long
        echo "== $tool"
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 within "$seconds" "$sanitizer" "${options[@]}" \
            "$PYTHON" -m benchmarks.sanitize_cuda --limit-s "$((seconds - 20))" >"$log" 2>&1
        status=$?
        cat "$log"
        if grep -q "Device not supported" "$log"; then
            echo "VERDICT: $tool refused this device"
            refused=$((refused + 1))
        elif ((status == 0)); then
            echo "VERDICT: $tool found nothing; $(grep -E "cases ran" "$log" | tail -n 1)"
        else
            echo "VERDICT: $tool failed: $(verdict_of "$status"); $(grep -E "SUMMARY" "$log" | tail -n 1)"
            worst=1
        fi
    done
    rm -f "$log"
    ((worst == 0 && refused > 0)) && return "$REFUSED"
    return "$worst"
}

do_exchange() {
    local nvcc program status
    nvcc=$(command -v "${CUDA_HOME:-}/bin/nvcc" nvcc /usr/local/cuda/bin/nvcc | head -n 1)
    if [ -z "$nvcc" ]; then
        echo "no nvcc was found: put it into PATH, or set CUDA_HOME"
        return 1
    fi
    program=$(mktemp)
    within "$(least 60 "$(left)")" "$nvcc" -std=c++20 -gencode="arch=compute_$machine,code=sm_$machine" \
        benchmarks/exchange.cu -o "$program" && within "$(least 60 "$(left)")" "$program"
    status=$?
    rm -f "$program"
    return "$status"
}

do_bench() {
    local prices=() seconds
    [ -s "$OUT_DIR/exchange.log" ] && prices=(--exchange "$OUT_DIR/exchange.log")
    seconds=$(least "$BENCH_S" "$(($(left) - 25))") # loading, first numbers of the machine, and the plot
    # shellcheck disable=SC2086
    within "$(left)" "$PYTHON" -m benchmarks --device cuda $BENCH --limit-s "$seconds" \
        --out "$OUT_DIR" --named "${prices[@]}"
}

verdict_of() { # of an exit status
    case $1 in
        0) echo "ok" ;;
        "$REFUSED") echo "refused" ;;
        86) echo "errors found" ;;
        124 | 137) echo "out of time" ;;
        *) echo "failed ($1)" ;;
    esac
}

declare -A verdict took
failed=0
part() {
    local name=$1 started=$SECONDS status
    if [ "$name" != exchange ] && [ -n "${verdict[build]:-}" ] && [ "${verdict[build]}" != ok ]; then
        verdict[$name]="not run: the build did not succeed"
        took[$name]=0
        return
    fi
    echo "==== $name"
    "do_$name" 2>&1 | tee "$OUT_DIR/$name.log"
    status=${PIPESTATUS[0]}
    verdict[$name]=$(verdict_of "$status")
    took[$name]=$((SECONDS - started))
    ((status != 0 && status != REFUSED)) && failed=1
    echo "==== $name: ${verdict[$name]}, ${took[$name]} s"
}

summary() {
    local name
    echo "$device, compute capability $capability; $versions; $SECONDS s"
    for name in $PARTS; do
        printf '%-9s %-12s %4d s\n' "$name" "${verdict[$name]}" "${took[$name]}"
        case $name in
            test) grep -E '^(FAILED|ERROR) |(passed|failed|error).* in ' "$OUT_DIR/test.log" 2>/dev/null | tail -n 12 ;;
            sanitize) grep '^VERDICT' "$OUT_DIR/sanitize.log" 2>/dev/null ;;
            bench) sed -n '/^| ground/,/^$/p' "$OUT_DIR/bench.log" 2>/dev/null ;;
        esac
        case ${verdict[$name]} in
            failed* | "out of time") tail -n 12 "$OUT_DIR/$name.log" | sed 's/^/    /' ;;
        esac
    done
    ((failed == 0)) && echo "all is well" || echo "SOMETHING FAILED; logs are in $OUT_DIR"
}

for name in $PARTS; do
    case $name in
        build | test | sanitize | exchange | bench) ;;
        *) echo "PARTS: $name is none of build test sanitize exchange bench" >&2 && exit 2 ;;
    esac
done
mkdir -p "$OUT_DIR" || exit 1
OUT_DIR=$(cd "$OUT_DIR" && pwd)
asked='import sys, torch
if not torch.cuda.is_available(): sys.exit(f"no CUDA device, or a torch without CUDA: {torch.__version__}")
major, minor = torch.cuda.get_device_capability()
versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
print(f"{major}.{minor}|{torch.cuda.get_device_name()}|{versions}|{sys.executable}")'
facts=$("$PYTHON" -c "$asked") || exit 1
IFS='|' read -r capability device versions executable <<<"$facts"
PATH=$(dirname "$executable"):$PATH # where its ninja is: without it one compiler runs at a time
arch=$capability
[ "$arch" = 9.0 ] && arch=9.0a # wgmma and its kind
machine=${arch/./}
echo "$device, compute capability $capability, $versions: $PARTS, into $OUT_DIR"

for name in $PARTS; do part "$name"; done
echo
summary | tee "$OUT_DIR/summary.txt"
exit $failed
