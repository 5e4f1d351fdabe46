// More of rows.h: layer normalisation of what no step waits for, and its gradient.
#pragma once
#include "row_math.h"

namespace fused_rnn::cuda {

// Rows of a product: kept as they are, then normalised and scaled in place.
template <class S>
struct NormaliseArgs {
    int64_t N, count;
    const S* gain;             // [count]
    ComputeType<S>* products;  // [N, count]
    S* keep;                   // rows ld_keep apart, or null
    int64_t ld_keep;

    int64_t rows() const { return N; }
};

template <class Device, class S>
FUSED_RNN_DEVICE void each_row(const Device& dev, const NormaliseArgs<S>& a) {
    using F = ComputeType<S>;
    each_row_of(dev, a.N, [&](int64_t n) {
        F* const row = a.products + n * a.count;
        S* const keep = a.keep ? a.keep + n * a.ld_keep : nullptr;
        const auto moments = moments_of<F>(
            dev, a.count, [&](int64_t k) { return row[k]; },
            [&](int64_t k, F product) {
                if (keep) dev.narrow(product, keep[k]);
            });
        each_unit(dev, a.count, [&](int64_t k) { row[k] = moments.normal(row[k]) * dev.widen(a.gain[k]); });
    });
}

// From dg, the gradients of what that gave: those of the product, and rows whose sum is that of the gain.
template <class S>
struct NormGradArgs {
    int64_t cell, N, H, G, width;
    bool hidden;    // of the product with h
    const S* dg;    // [N, width]
    const S* kept;  // the product, rows ld_kept apart
    int64_t ld_kept;
    const S* gain;          // [G*H]
    S* to;                  // [N, G*H] or null
    ComputeType<S>* dgain;  // [N, G*H] or null

    int64_t rows() const { return N; }
};

template <class Device, class S>
FUSED_RNN_DEVICE void each_row(const Device& dev, const NormGradArgs<S>& a) {
    using F = ComputeType<S>;
    const int64_t GH = a.G * a.H;
    each_row_of(dev, a.N, [&](int64_t n) {
        const S *const kept = a.kept + n * a.ld_kept, *const dg = a.dg + n * a.width;
        const auto product = [&](int64_t k) { return dev.widen(kept[k]); };
        const auto d = [&](int64_t k) { return dev.widen(dg[a.hidden ? hidden_column(a.cell, a.H, k) : k]); };
        const auto moments = moments_of<F>(dev, GH, product);
        if (a.dgain) each_unit(dev, GH, [&](int64_t k) { a.dgain[n * GH + k] = d(k) * moments.normal(product(k)); });
        if (!a.to) return;
        normal_grad(
            dev, moments, 1, GH, [&](int64_t, int64_t k) { return product(k); },
            [&](int64_t, int64_t k) { return d(k) * dev.widen(a.gain[k]); },
            [&](int64_t, int64_t k, F gradient) { dev.narrow(gradient, a.to[n * GH + k]); });
    });
}

}  // namespace fused_rnn::cuda
