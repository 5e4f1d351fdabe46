#!/usr/bin/env bash
# The generic kernels for aarch64: cross-compiled, and run under an emulator where there is one. Does nothing, and says so,
# without the cross compiler (Debian: apt-get install g++-aarch64-linux-gnu qemu-user).
set -euo pipefail
cd "$(dirname "$0")/../.."
CXX=${CXX:-aarch64-linux-gnu-g++}
OUT=${OUT:-build/aarch64}
command -v "$CXX" >/dev/null || { echo "aarch64: no $CXX, skipped"; exit 0; }

mkdir -p "$OUT"
for source in csrc/cpu/*.cpp tests/cpp/loops.cpp; do
    echo "$CXX -std=c++20 -O2 -ffp-contract=fast -Wall -Wextra -Wno-psabi -c $source -o $OUT/$(basename "$source" .cpp).o"
done | xargs -P "${JOBS:-2}" -I{} sh -c '{}'
$CXX -static "$OUT"/*.o -o "$OUT/loops" -pthread
echo "aarch64: compiles"
if command -v qemu-aarch64 >/dev/null; then qemu-aarch64 "$OUT/loops" quick; else echo "aarch64: no qemu-aarch64, not run"; fi
