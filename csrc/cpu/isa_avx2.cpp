// AVX2 with FMA and F16C (Haswell, Zen and later).
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define FUSED_RNN_VECTOR_BYTES 32
namespace fused_rnn::cpu::avx2 {
#include "kernels-inl.h"
}  // namespace fused_rnn::cpu::avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace fused_rnn::cpu {
const IsaTable avx2_table = {
    "avx2", &avx2::f32_kernels, &avx2::f64_kernels, &avx2::bf16_kernels, &avx2::f16_kernels, nullptr, nullptr};
}  // namespace fused_rnn::cpu
#endif  // __x86_64__
