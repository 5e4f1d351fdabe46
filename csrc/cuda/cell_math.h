// The step functions of core/cells.h for scalars, and the activations they take.
#pragma once
#include <cmath>

#include "args.h"

#if defined(__CUDACC__)
#define FUSED_RNN_DEVICE __device__ __forceinline__
#define FUSED_RNN_PRAGMA(TEXT) _Pragma(#TEXT)
#define FUSED_RNN_UNROLL(COUNT) FUSED_RNN_PRAGMA(unroll COUNT)
#else
#define FUSED_RNN_DEVICE inline
#define FUSED_RNN_UNROLL(COUNT)
#endif
#define FUSED_RNN_INLINE FUSED_RNN_DEVICE
#define FUSED_RNN_OUTLINE FUSED_RNN_DEVICE

namespace fused_rnn::cuda {

template <class F>
using Vec = F;

template <class F>
FUSED_RNN_DEVICE F clamp(F x, F low, F high) {
    return x > high ? high : x < low ? low : x;  // NaN stays NaN
}

FUSED_RNN_DEVICE uint32_t multiply_wide(uint32_t a, uint32_t m, uint32_t& high) {
    const uint64_t product = static_cast<uint64_t>(a) * m;
    high = static_cast<uint32_t>(product >> 32);
    return static_cast<uint32_t>(product);
}

// clang-format off
#include "../core/activations.h"
#include "../core/cells.h"
#include "../core/philox.h"
// clang-format on

// Not std::exp and std::tanh by name alone: in device code these are CUDA's own, within 2 ulp, for float and double.
template <class F>
struct Standard {
    using V = F;
    using Scalar = F;
    static FUSED_RNN_DEVICE F gate(F x) { return F(1) / (F(1) + std::exp(-x)); }
    static FUSED_RNN_DEVICE F state(F x) { return std::tanh(x); }
    static FUSED_RNN_DEVICE F complement(F z) { return F(1) - z; }
    static FUSED_RNN_DEVICE F gate_grad(F s, F ds) { return ds * (s * (F(1) - s)); }
    static FUSED_RNN_DEVICE F state_grad(F t, F dt) { return dt * (F(1) - t * t); }
};

// Those of cells that are not torch's.
template <class F>
using Any = Chosen<Standard<F>>;
template <class Act>
inline constexpr bool kVaries = !__is_empty(Act);

// An event of probability p happens where this is true of a word.
FUSED_RNN_DEVICE bool happens(uint32_t word, double p) {
    return static_cast<int32_t>(word >> (32 - kChanceBits)) < chance(p);
}

// Of what is drawn for a unit of the row with this seed.
FUSED_RNN_DEVICE RandomWords<uint32_t> random_words(int64_t seed, Draw what, int64_t t, int64_t unit) {
    return philox<uint32_t>({{static_cast<uint32_t>(unit), static_cast<uint32_t>(t), static_cast<uint32_t>(what), 0u}},
                            static_cast<uint64_t>(seed));
}

// What is dropped is not looked at: NaN goes no further.
template <class F>
FUSED_RNN_DEVICE F masked(F x, F m) {
    return m == F(0) ? F(0) : x * m;
}

}  // namespace fused_rnn::cuda
