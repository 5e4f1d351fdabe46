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

// f(j, x(j)) for the same units, where x(j) is little more than loads: those of eight units are under way together, as each may
// come from as far as memory. Past the end they are of a unit again that is this lane's: a branch would end what is together.
template <class F, class Device, class Values, class Function>
FUSED_RNN_DEVICE void each_value(const Device& dev, int64_t count, const Values& x, const Function& f) {
    constexpr int kAtOnce = 8;
    FUSED_RNN_UNROLL(1)
    for (int64_t first = dev.thread() % kWarp; first < count; first += kAtOnce * kWarp) {
        F values[kAtOnce];
        FUSED_RNN_UNROLL()
        for (int i = 0; i < kAtOnce; ++i) {
            const int64_t j = first + i * kWarp;
            values[i] = x(j < count ? j : first);
        }
        FUSED_RNN_UNROLL()
        for (int i = 0; i < kAtOnce; ++i)
            if (first + i * kWarp < count) f(first + i * kWarp, values[i]);
    }
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

// Of x(j); seen(j, x(j)) is called once for each.
template <class F, class Device, class Values, class Seen>
FUSED_RNN_DEVICE Moments<F> moments_of(const Device& dev, int64_t count, const Values& x, const Seen& seen) {
    F sum = 0, squares = 0;
    each_value<F>(dev, count, x, [&](int64_t j, F value) {
        seen(j, value);
        sum += value;
    });
    const F mean = sum_lanes(dev, sum) / F(count);
    each_value<F>(dev, count, x, [&](int64_t, F value) {
        const F off = value - mean;
        squares += off * off;
    });
    return {mean, F(1) / std::sqrt(sum_lanes(dev, squares) / F(count) + F(kNormEpsilon))};
}
template <class F, class Device, class Values>
FUSED_RNN_DEVICE Moments<F> moments_of(const Device& dev, int64_t count, const Values& x) {
    return moments_of<F>(dev, count, x, [](int64_t, F) {});
}

// to(g, j, gradient) is told the gradient of value(g, j), units j of up to four gates g, from that of what is normal, from(g, j);
// moments are those of all these values together. All gates of a unit are read before the first is used.
template <class F, class Device, class Value, class From, class To>
FUSED_RNN_DEVICE void normal_grad(const Device& dev, const Moments<F>& moments, int64_t gates, int64_t units,
                                  const Value& value, const From& from, const To& to) {
    constexpr int kGates = 4;
    const auto each_gate = [&](int64_t j, const auto& f) {
        F scaled[kGates], values[kGates];
        FUSED_RNN_UNROLL()
        for (int g = 0; g < kGates; ++g) {
            if (g >= gates) continue;
            scaled[g] = from(g, j);
            values[g] = value(g, j);
        }
        FUSED_RNN_UNROLL()
        for (int g = 0; g < kGates; ++g)
            if (g < gates) f(g, scaled[g], moments.normal(values[g]));
    };
    F sum = 0, product = 0;
    each_unit(dev, units, [&](int64_t j) {
        each_gate(j, [&](int64_t, F scaled, F normal) {
            sum += scaled;
            product += scaled * normal;
        });
    });
    const F count = F(gates * units), mean = sum_lanes(dev, sum) / count, slope = sum_lanes(dev, product) / count;
    each_unit(dev, units, [&](int64_t j) {
        each_gate(j,
                  [&](int64_t g, F scaled, F normal) { to(g, j, moments.scale * (scaled - mean - normal * slope)); });
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
    each_value<F>(dev, count, x, [&](int64_t, double wide) { squares += wide * wide; });
    const double norm = std::sqrt(sum_lanes(dev, squares));
    return norm > v.clip_norm ? static_cast<F>(v.clip_norm / norm) : F(1);
}

}  // namespace fused_rnn::cuda
