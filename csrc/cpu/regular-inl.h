// Regularisation inside the time loops: which units zoneout keeps, the mask of recurrent dropout, the clip of gradients
// between steps. Included inside an ISA namespace.

// Words for units u and on of a row, one a lane of F (in the lower half of a wide one).
template <class F>
FUSED_RNN_INLINE RandomWords<U32> random_words(int64_t seed, Draw what, int64_t t, int64_t u) {
    typename Simd<F>::I units;
    for (int k = 0; k < Simd<F>::W; ++k) units[k] = k;
    units += static_cast<typename Lanes<F>::Int>(u);
    const U32 zero{};
    return philox<U32>(
        {{bits_as<U32>(units), zero + static_cast<uint32_t>(t), zero + static_cast<uint32_t>(what), zero}},
        static_cast<uint64_t>(seed));
}

// 1 where an event of probability p happens, else 0.
template <class F>
FUSED_RNN_INLINE Vec<F> happens(U32 words, double p) {
    using I = typename Simd<F>::I;
    I bits = bits_as<I>(words >> (32 - kChanceBits));
    if constexpr (sizeof(F) == 8) bits &= 0xffffffff;
    return bits < chance(p) ? splat<Vec<F>>(F(1)) : Vec<F>{};
}

// What units u and on of row b keep of their state in step t: all or nothing as drawn, or, without seeds, as much as they
// do on average. Not inlined, or each cell would bring the generator along.
template <class F>
FUSED_RNN_OUTLINE Zoneout<Vec<F>> drawn_zoneout(const int64_t* seeds, int64_t t, int64_t b, int64_t u, double of_h,
                                                double of_c) {
    Vec<F> h = splat<Vec<F>>(F(of_h)), c = splat<Vec<F>>(F(of_c));
    if (seeds) {
        const RandomWords<U32> words = random_words<F>(seeds[b], Draw::kZoneout, t, u);
        h = happens<F>(words.x[0], of_h);
        c = happens<F>(words.x[1], of_c);
    }
    return {of_h > 0, of_c > 0, h, F(1) - h, c, F(1) - c};
}
// Of a cell. What the first of two products gives is all new: what is kept is what the second one leads to.
template <class F, class Args>
FUSED_RNN_INLINE Zoneout<Vec<F>> zoneout_of(const Args& a, int64_t t, int64_t b, int64_t u) {
    if (!a.variant.zones()) return Zoneout<Vec<F>>{};
    return drawn_zoneout<F>(a.seeds, t, b, u, a.two_products ? 0 : a.variant.zoneout_h, a.variant.zoneout_c);
}
// Of h after the second of two products.
template <class F, class Args>
FUSED_RNN_INLINE Zoneout<Vec<F>> zoneout_h(const Args& a, int64_t t, int64_t b, int64_t u) {
    if (a.variant.zoneout_h == 0) return Zoneout<Vec<F>>{};
    return drawn_zoneout<F>(a.seeds, t, b, u, a.variant.zoneout_h, 0);
}

// [rows, columns]: 0 where recurrent dropout of probability p drops a unit for the whole of a call, else what keeps the
// mean.
template <class F>
void draw_mask(const int64_t* seeds, double p, int64_t rows, int64_t columns, F* mask, int64_t ld) {
    constexpr int W = Simd<F>::W;
    const Vec<F> kept = splat<Vec<F>>(F(1 / (1 - p)));
    for (int64_t b = 0; b < rows; ++b) {
        for (int64_t u = 0; u < columns; u += W) {
            const RandomWords<U32> words = random_words<F>(seeds[b], Draw::kRecurrentDropout, 0, u);
            const Vec<F> m = happens<F>(words.x[0], p) > F(0) ? Vec<F>{} : kept;
            store(mask + b * ld + u, m, columns - u < W ? static_cast<int>(columns - u) : W);
        }
    }
}

// to (+)= from times the mask. What is dropped is not looked at: NaN goes no further.
template <class F>
void mask_rows(const F* from, int64_t ld_from, const F* mask, int64_t ld_mask, int64_t rows, int64_t columns, F* to,
               int64_t ld_to, bool accumulate) {
    constexpr int W = Simd<F>::W;
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t u = 0; u < columns; u += W) {
            const int lanes = columns - u < W ? static_cast<int>(columns - u) : W;
            const Vec<F> m = load<F>(mask + r * ld_mask + u, lanes), x = load<F>(from + r * ld_from + u, lanes);
            Vec<F> v = m == F(0) ? Vec<F>{} : x * m;
            if (accumulate) v += load<F>(to + r * ld_to + u, lanes);
            store(to + r * ld_to + u, v, lanes);
        }
    }
}

// The same for a vector, or nothing without a mask.
template <class F>
FUSED_RNN_INLINE Vec<F> masked(const F* mask, int64_t at, int lanes, Vec<F> x) {
    if (!mask) return x;
    const Vec<F> m = load<F>(mask + at, lanes);
    return m == F(0) ? Vec<F>{} : x * m;
}

// What W_hh sees of units [u0, u1) of h of row b.
template <class F, class S>
void mask_state(const ForwardArgs<F, S>& a, int64_t b, int64_t u0, int64_t u1, int which) {
    const int64_t at = b * a.ld_h + u0;
    mask_rows(a.h[which] + at, 0, a.mask + at, 0, 1, u1 - u0, a.h_masked[which] + at, 0, false);
}

// A row of a gradient, its `count` elements at most `by_value`, then its norm at most `by_norm`; 0: without bound.
template <class F>
void clip_row(F* row, int64_t count, double by_value, double by_norm) {
    constexpr int W = Simd<F>::W;
    constexpr int kSums = 8;
    const auto each = [&](const auto& f) {
        for (int64_t u = 0; u < count; u += W) {
            const int lanes = count - u < W ? static_cast<int>(count - u) : W;
            store(row + u, f(load<F>(row + u, lanes)), lanes);
        }
    };
    if (by_value > 0) each([&](Vec<F> v) { return clamp(v, static_cast<F>(-by_value), static_cast<F>(by_value)); });
    if (by_norm > 0) {
        double sums[kSums] = {};  // wide: what is worth clipping may have squares past the range of f32
        for (int64_t u = 0; u < count; u += kSums) {
            const int n = count - u < kSums ? static_cast<int>(count - u) : kSums;
            for (int k = 0; k < n; ++k) sums[k] += static_cast<double>(row[u + k]) * static_cast<double>(row[u + k]);
        }
        for (int k = 1; k < kSums; ++k) sums[0] += sums[k];
        const double norm = __builtin_sqrt(sums[0]);
        if (norm > by_norm) each([&](Vec<F> v) { return v * static_cast<F>(by_norm / norm); });
    }
}

// What step t sends to the state before it, whole rows [b0, b1) of it.
template <class F, class S>
void clip_rows(const BackwardArgs<F, S>& a, int64_t t, int64_t b0, int64_t b1) {
    const int64_t before = a.reverse ? t + 1 : t - 1, rows = a.seq.rows(before);
    const Marks anew = reset_before(a, t);
    for (int64_t b = b0; b < b1; ++b) {
        if (a.squares && b < rows && !anew[b]) tell_sent(a, b, a.seq.row(before) + b);
        clip_row(a.dh + b * a.ld_dh, a.R, a.variant.clip_value, a.variant.clip_norm);
        if (is_lstm(a.cell)) clip_row(a.dc + b * a.ld_c, a.H, a.variant.clip_value, a.variant.clip_norm);
    }
}
