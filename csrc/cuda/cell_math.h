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

namespace fused_rnn::cuda {

#include "../core/cells.h"

// Not std::exp and std::tanh by name alone: in device code these are CUDA's own, within 2 ulp, for float and double.
template <class F>
struct Standard {
    static FUSED_RNN_DEVICE F gate(F x) { return F(1) / (F(1) + std::exp(-x)); }
    static FUSED_RNN_DEVICE F state(F x) { return std::tanh(x); }
    static FUSED_RNN_DEVICE F complement(F z) { return F(1) - z; }
    static FUSED_RNN_DEVICE F gate_grad(F s, F ds) { return ds * (s * (F(1) - s)); }
    static FUSED_RNN_DEVICE F state_grad(F t, F dt) { return dt * (F(1) - t * t); }
};

template <class F>
struct Relu {
    static FUSED_RNN_DEVICE F state(F x) { return x < F(0) ? F(0) : x; }  // NaN stays NaN
    // Chosen, not multiplied: no gradient, not even NaN, passes a unit at rest.
    static FUSED_RNN_DEVICE F state_grad(F h, F dh) { return h <= F(0) ? F(0) : dh; }
};

template <class F>
struct Linear {
    static FUSED_RNN_DEVICE F gate(F x) { return x; }
    static FUSED_RNN_DEVICE F state(F x) { return x; }
    static FUSED_RNN_DEVICE F complement(F z) { return F(1) - z; }
    static FUSED_RNN_DEVICE F gate_grad(F, F ds) { return ds; }
    static FUSED_RNN_DEVICE F state_grad(F, F dt) { return dt; }
};

}  // namespace fused_rnn::cuda
