// AMX tiles and bf16 beside AVX-512 (Sapphire Rapids and later): bf16 and split f32 gain by them, the rest is AVX-512's.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(                                                                                 \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512bf16,amx-tile,amx-bf16"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512bf16,amx-tile,amx-bf16")
#endif
#define FUSED_RNN_VECTOR_BYTES 64
#define FUSED_RNN_BF16_INSTRUCTIONS
namespace fused_rnn::cpu::amx {
#include "kernels-inl.h"
// clang-format off
#include "pack_tiles-inl.h"
#include "gemm_tiles-inl.h"
// clang-format on
template <class S>
constexpr TileKernels<float, S> make_tile_kernels() {
    return {forward_loop<TileRows<S>, float, S>,
            backward_loop<TileRows<S>, float, S>,
            pack_tiles_transposed<S>,
            pack_tiles_plain<S, S>,
            pack_tiles_plain<S, float>,
            multiply_tiles<S>,
            narrow_rows<S, float>,
            multiply_narrowed<S, float>,
            multiply_narrowed<S, S>,
            transpose_narrowed<S>};
}
static constexpr TileKernels<float, bf16> bf16_tiles = make_tile_kernels<bf16>();
static constexpr TileKernels<float, float> f32_tiles = make_tile_kernels<float>();
}  // namespace fused_rnn::cpu::amx
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace fused_rnn::cpu {
const IsaTable amx_table = {
    "amx",          avx512_table.f32, avx512_table.f64, avx512_table.bf16_, avx512_table.f16_, &amx::bf16_tiles,
    &amx::f32_tiles};
}  // namespace fused_rnn::cpu
#endif  // __x86_64__
