// AVX-512 F, BW, DQ, VL (Skylake server, Zen 4 and later).
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#define FUSED_RNN_VECTOR_BYTES 64
namespace fused_rnn::cpu::avx512 {
#include "kernels-inl.h"
}  // namespace fused_rnn::cpu::avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace fused_rnn::cpu {
const IsaTable avx512_table = {
    "avx512", &avx512::f32_kernels, &avx512::f64_kernels, &avx512::bf16_kernels, &avx512::f16_kernels, nullptr,
    nullptr};
}  // namespace fused_rnn::cpu
#endif  // __x86_64__
