// Arithmetic whose results are no subnormal numbers, those so small that they lose digits (of f32 below 1.2e-38). x86 takes a
// hundred times as long to make one or to multiply it, and gradients that vanish over a few hundred steps come to nothing else.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fused_rnn::cpu {

// While it lives, on this thread, they become zero. As operands they count, for what comes from outside: f16 is widened by way of
// them, too. Other CPUs are as fast with them.
class NoSubnormals {
#if defined(__x86_64__)
  public:
    NoSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON); }
    ~NoSubnormals() { _mm_setcsr(before_); }
    NoSubnormals(const NoSubnormals&) = delete;
    NoSubnormals& operator=(const NoSubnormals&) = delete;

  private:
    const unsigned before_;
#endif
};

}  // namespace fused_rnn::cpu
