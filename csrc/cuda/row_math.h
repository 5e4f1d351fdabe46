// What looks at a whole row, which one warp takes: sums, in an order that follows from the row's length alone, layer
// normalisation (Ba et al. 2016) and its gradient, bounds. A lane has the same units in every pass.
#pragma once
#include "cell_math.h"

namespace fused_rnn::cuda {

constexpr int kWarp = 32;

// f(row) for rows [first, end), which the warps of `parts` blocks, this one's being the `part`-th, take one each in turn.
template <class Device, class Function>
FUSED_RNN_DEVICE void each_row_of(const Device& dev, int64_t part, int64_t parts, int64_t first, int64_t end,
                                  const Function& f) {
    const int64_t warps = dev.threads() / kWarp;
    for (int64_t row = first + part * warps + dev.thread() / kWarp; row < end; row += parts * warps) f(row);
}
// All blocks of a kernel.
template <class Device, class Function>
FUSED_RNN_DEVICE void each_row_of(const Device& dev, int64_t end, const Function& f) {
    each_row_of(dev, dev.block(), dev.blocks(), 0, end, f);
}

// f(j) for this lane's of `count` units. Not unrolled: whole cells do not share registers.
template <class Device, class Function>
FUSED_RNN_DEVICE void each_unit(const Device& dev, int64_t count, const Function& f) {
    FUSED_RNN_UNROLL(1)
    for (int64_t j = dev.thread() % kWarp; j < count; j += kWarp) f(j);
}

// Of all lanes, to all of them.
template <class Device, class F>
FUSED_RNN_DEVICE F sum_lanes(const Device& dev, F x) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) x += dev.shuffle_xor(x, mask);
    return x;
}

template <class F>
struct Moments {
    F mean, scale;  // 1 / sqrt(variance + epsilon)
    FUSED_RNN_DEVICE F normal(F x) const { return (x - mean) * scale; }
};

template <class F, class Device, class Values>
FUSED_RNN_DEVICE Moments<F> moments_of(const Device& dev, int64_t count, const Values& x) {
    F sum = 0, squares = 0;
    each_unit(dev, count, [&](int64_t j) { sum += x(j); });
    const F mean = sum_lanes(dev, sum) / F(count);
    each_unit(dev, count, [&](int64_t j) {
        const F off = x(j) - mean;
        squares += off * off;
    });
    return {mean, F(1) / std::sqrt(sum_lanes(dev, squares) / F(count) + F(kNormEpsilon))};
}

// to(g, j, gradient) is told the gradient of value(g, j), units j of gates g, from that of what is normal, from(g, j); moments
// are those of all these values together.
template <class F, class Device, class Value, class From, class To>
FUSED_RNN_DEVICE void normal_grad(const Device& dev, const Moments<F>& moments, int64_t gates, int64_t units,
                                  const Value& value, const From& from, const To& to) {
    F sum = 0, product = 0;
    each_unit(dev, units, [&](int64_t j) {
        for (int64_t g = 0; g < gates; ++g) {
            const F scaled = from(g, j);
            sum += scaled;
            product += scaled * moments.normal(value(g, j));
        }
    });
    const F count = F(gates * units), mean = sum_lanes(dev, sum) / count, slope = sum_lanes(dev, product) / count;
    each_unit(dev, units, [&](int64_t j) {
        for (int64_t g = 0; g < gates; ++g)
            to(g, j, moments.scale * (from(g, j) - mean - moments.normal(value(g, j)) * slope));
    });
}

// Each element of a gradient at most clip_value; NaN stays NaN.
template <class F>
FUSED_RNN_DEVICE F clip_value(const Variant& v, F x) {
    return v.clip_value > 0 ? clamp(x, static_cast<F>(-v.clip_value), static_cast<F>(v.clip_value)) : x;
}
// By what a row of such elements is to be multiplied, for its norm to be at most clip_norm. Squares are summed wide: what is
// worth clipping may have some past the range of f32.
template <class F, class Device, class Values>
FUSED_RNN_DEVICE F clip_factor(const Device& dev, const Variant& v, int64_t count, const Values& x) {
    if (!(v.clip_norm > 0)) return F(1);
    double squares = 0;
    each_unit(dev, count, [&](int64_t j) {
        const double wide = x(j);
        squares += wide * wide;
    });
    const double norm = std::sqrt(sum_lanes(dev, squares));
    return norm > v.clip_norm ? static_cast<F>(v.clip_norm / norm) : F(1);
}

}  // namespace fused_rnn::cuda
