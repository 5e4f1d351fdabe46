// AMX tiles and bf16 beside AVX-512 (Sapphire Rapids and later): bf16 alone gains by them, the rest is AVX-512's.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,amx-tile,amx-bf16"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,amx-tile,amx-bf16")
#endif
#define FUSED_RNN_VECTOR_BYTES 64
namespace fused_rnn::cpu::amx {
#include "kernels-inl.h"
#include "gemm_tiles-inl.h"
static constexpr TileKernels tile_kernels = {forward_loop<TileRows, float, bf16>,
                                             backward_loop<TileRows, float, bf16>,
                                             pack_tiles_transposed,
                                             pack_tiles_plain<bf16>,
                                             pack_tiles_plain<float>,
                                             multiply_tiles<bf16>,
                                             multiply_tiles<float>,
                                             narrow_transposed};
}  // namespace fused_rnn::cpu::amx
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace fused_rnn::cpu {
const IsaTable amx_table = {
    "amx", avx512_table.f32, avx512_table.f64, avx512_table.bf16_, avx512_table.f16_, &amx::tile_kernels};
}  // namespace fused_rnn::cpu
#endif  // __x86_64__
