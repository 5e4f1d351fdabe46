#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fused_rnn::cpu {
namespace {

#if defined(__x86_64__)
// Whether there are bf16 tiles, the system saves them, and lets this process have them (Linux gives them who asks).
bool has_tiles() {
#if defined(__linux__)
    unsigned a, b, c, d = 0;
    constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kBf16 | kTile)) != (kBf16 | kTile)) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}
#endif

std::vector<const IsaTable*> runnable() {
    std::vector<const IsaTable*> tables = {&generic_table};
#if defined(__x86_64__)
    // The builtin asks cpuid and, through xgetbv, whether the system saves the wide registers.
    __builtin_cpu_init();
    unsigned a, b, c = 0, d;  // clang's builtin does not know f16c
    const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c) {
        tables.push_back(&avx2_table);
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            tables.push_back(&avx512_table);
        static const bool tiles = __builtin_cpu_supports("avx512bf16") && has_tiles();
        if (tables.back() == &avx512_table && tiles) tables.push_back(&amx_table);
    }
#endif
    return tables;
}

const IsaTable* find(const std::string& name) {
    const auto tables = runnable();
    if (name.empty()) return tables.back();
    std::string known;
    for (const IsaTable* table : tables) {
        if (name == table->name) return table;
        known += known.empty() ? table->name : std::string(", ") + table->name;
    }
    throw std::invalid_argument("instruction set '" + name + "' is not one this machine can run (" + known + ")");
}

const IsaTable* from_environment() {
    const char* name = std::getenv("FUSED_RNN_ISA");
    return find(name ? name : "");
}

std::atomic<const IsaTable*>& chosen() {
    static std::atomic<const IsaTable*> table{from_environment()};
    return table;
}

}  // namespace

const IsaTable& isa_table() { return *chosen().load(std::memory_order_acquire); }
std::string isa_name() { return isa_table().name; }

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const IsaTable* table : runnable()) names.emplace_back(table->name);
    return names;
}

void force_isa(const std::string& name) { chosen().store(find(name), std::memory_order_release); }

}  // namespace fused_rnn::cpu
