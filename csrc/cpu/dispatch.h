// Which instruction set runs: the best the machine and its operating system have, or the one
// that FUSED_RNN_ISA (generic, avx2, avx512, amx) or force_isa() names.
#pragma once
#include <string>
#include <type_traits>
#include <vector>

#include "kernels.h"

namespace fused_rnn::cpu {

const IsaTable& isa_table();
std::string isa_name();
std::vector<std::string> available_isas();  // best last
// Throws std::invalid_argument for a name this machine cannot run. Empty: back to the best.
void force_isa(const std::string& name);

template <class F, class S>
const Kernels<F, S>& kernels() {
    const IsaTable& table = isa_table();
    if constexpr (std::is_same_v<S, bf16>) {
        return *table.bf16_;
    } else if constexpr (std::is_same_v<S, f16>) {
        return *table.f16_;
    } else if constexpr (std::is_same_v<S, double>) {
        return *table.f64;
    } else {
        return *table.f32;
    }
}

// Null where the storage type has no tiles.
template <class F, class S>
const TileKernels<F, S>* tile_kernels() {
    if constexpr (std::is_same_v<S, bf16>) {
        return isa_table().bf16_tiles;
    } else if constexpr (std::is_same_v<S, float>) {
        return isa_table().f32_tiles;
    } else {
        return nullptr;
    }
}

}  // namespace fused_rnn::cpu
