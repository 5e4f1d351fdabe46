// Layer normalisation of a row (Ba et al. 2016): forward its statistics, backward the gradient through them. What reads whole
// rows sums them in an order that follows from their length alone. Included inside an ISA namespace.

template <class F>
struct Moments {
    F mean, scale;  // 1 / sqrt(variance + epsilon)
    FUSED_RNN_INLINE Vec<F> normal(Vec<F> x) const { return (x - mean) * scale; }
};

// The sum of values(k, lanes) over `count` elements; those of lanes that are not there must be zero.
template <class F, class Values>
FUSED_RNN_INLINE F row_sum(int64_t count, const Values& values) {
    constexpr int W = Simd<F>::W;
    constexpr int kChains = 4;
    Vec<F> sums[kChains] = {};
    int64_t k = 0;
    for (; k + kChains * W <= count; k += kChains * W) {
#pragma GCC unroll 4
        for (int i = 0; i < kChains; ++i) sums[i] += values(k + i * W, W);
    }
    for (; k < count; k += W) sums[0] += values(k, count - k < W ? static_cast<int>(count - k) : W);
    return sum_lanes<F>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class F>
struct Ones {
    F lanes[Simd<F>::W];
    constexpr Ones() : lanes() {
        for (F& one : lanes) one = F(1);
    }
};
template <class F>
inline constexpr Ones<F> kOnes;

// v with zeros in the lanes that are not there.
template <class F>
FUSED_RNN_INLINE Vec<F> cut(Vec<F> v, int lanes) {
    return lanes == Simd<F>::W ? v : v * load<F>(kOnes<F>.lanes, lanes);
}

template <class F, class From>
Moments<F> moments_of(const From* x, int64_t count) {
    const F mean = row_sum<F>(count, [&](int64_t k, int lanes) { return load<F>(x + k, lanes); }) / F(count);
    const F variance = row_sum<F>(count,
                                  [&](int64_t k, int lanes) {
                                      const Vec<F> off = cut<F>(load<F>(x + k, lanes) - mean, lanes);
                                      return off * off;
                                  }) /
                       F(count);
    if constexpr (sizeof(F) == 4) {
        return {mean, F(1) / __builtin_sqrtf(variance + F(kNormEpsilon))};
    } else {
        return {mean, F(1) / __builtin_sqrt(variance + F(kNormEpsilon))};
    }
}

// A row of a product: kept as it is where `keep` says, then normalised and scaled in place.
template <class F, class S>
void normalise(F* row, const F* gains, int64_t count, S* keep) {
    constexpr int W = Simd<F>::W;
    const Moments<F> moments = moments_of<F>(row, count);
    for (int64_t k = 0; k < count; k += W) {
        const int lanes = count - k < W ? static_cast<int>(count - k) : W;
        const Vec<F> x = load<F>(row + k, lanes);
        if (keep) store(keep + k, x, lanes);
        store(row + k, moments.normal(x) * load<F>(gains + k, lanes), lanes);
    }
}

// Both products of a row of the sequence, ahead of its cells.
template <class F, class S>
FUSED_RNN_INLINE void normalise_products(const ForwardArgs<F, S>& a, int64_t n, F* gx, F* hg) {
    const int64_t GH = gates_of(a.cell, a.variant) * a.H;
    S* keep = a.saved.gates ? a.saved.gates_of(n) + saved_activations_of(a.cell, a.variant) * a.H : nullptr;
    normalise(gx, a.norm.x, GH, keep);
    normalise(hg, a.norm.h, GH, keep ? keep + GH : nullptr);
}

// The gradient of what normalise() took (`kept`) from that of what it gave, `from`; the same place is allowed. Adds to those
// of the gains.
template <class F, class S>
void normalise_grad(const S* kept, const F* gains, int64_t count, const F* from, F* to, F* gain_sums) {
    constexpr int W = Simd<F>::W;
    const Moments<F> moments = moments_of<F>(kept, count);
    Vec<F> sum = {}, product = {};
    for (int64_t k = 0; k < count; k += W) {
        const int lanes = count - k < W ? static_cast<int>(count - k) : W;
        const Vec<F> d = load<F>(from + k, lanes), normal = moments.normal(load<F>(kept + k, lanes));
        const Vec<F> scaled = d * load<F>(gains + k, lanes);
        sum += scaled;
        product += scaled * normal;
        store(gain_sums + k, load<F>(gain_sums + k, lanes) + d * normal, lanes);
    }
    const F mean = sum_lanes<F>(sum) / F(count), slope = sum_lanes<F>(product) / F(count);
    for (int64_t k = 0; k < count; k += W) {
        const int lanes = count - k < W ? static_cast<int>(count - k) : W;
        const Vec<F> normal = moments.normal(load<F>(kept + k, lanes));
        const Vec<F> scaled = load<F>(from + k, lanes) * load<F>(gains + k, lanes);
        store(to + k, moments.scale * (scaled - mean - normal * slope), lanes);
    }
}

// After the cells of a row: its dgx and dgh become gradients of the products themselves. Where both sides have one gradient
// the cells have left it in dgx alone.
template <class F, class S>
FUSED_RNN_INLINE void normalise_products_grad(const BackwardArgs<F, S>& a, int64_t b, int64_t n) {
    const int64_t GH = gates_of(a.cell, a.variant) * a.H;
    F *dgx = a.dgx + (n - a.dg_row) * a.ld_dg, *dgh = a.dgh + (n - a.dg_row) * a.ld_dg;
    const S* kept = a.saved.gates_of(n) + saved_activations_of(a.cell, a.variant) * a.H;
    const NormSums<F> sums(a, b);
    const bool apart = biases_apart(a.cell, a.variant);
    add_units(dgx, 0, GH, sums.shift_x);
    if (apart) add_units(dgh, 0, GH, sums.shift_h);
    normalise_grad(kept + GH, a.norm.h, GH, apart ? dgh : dgx, dgh, sums.gain_h);
    normalise_grad(kept, a.norm.x, GH, dgx, dgx, sums.gain_x);
}

// An LSTM that shows its cell normalised, h' = o tanh(gain c' / |c'| + shift); a row's cells come first, all of them.
template <template <class> class ActT, class F>
struct NormedLstmRows : LstmRows<ActT, F> {
    using Plain = LstmRows<ActT, F>;
    using V = Vec<F>;
    using Act = ActT<F>;

    // o waits in the place of its product, c as it sees it in that of the first.
    template <class S>
    static FUSED_RNN_OUTLINE Moments<F> start(const ForwardArgs<F, S>& a, int64_t t, int64_t b, int64_t n, const F* gx,
                                              F* hg, int64_t gate_stride) {
        constexpr int W = Simd<F>::W;
        for (int64_t u = 0; u < a.H; u += W) {
            const int lanes = a.H - u < W ? static_cast<int>(a.H - u) : W;
            const LstmStep<V> s =
                Plain::advance(a, b, n, u, lanes, gx + u, hg + u, gate_stride, kept_by<Plain>(a, t, b, u));
            store(hg + of_o(a) * gate_stride + u, s.o, lanes);
            store(hg + u, s.c, lanes);
        }
        return moments_of<F>(hg, a.H);
    }

    template <class S, class Kept>
    static FUSED_RNN_INLINE V forward(const ForwardArgs<F, S>& a, int64_t b, int64_t, int64_t u, int lanes, const F*,
                                      const F* hg, int64_t gate_stride, const F* h_prev, const Kept& kept,
                                      const Moments<F>& cells) {
        const V o = load<F>(hg + of_o(a) * gate_stride, lanes);
        const V h = o * shown(a, cells.normal(load<F>(hg, lanes)), u, lanes);
        return kept.of_h ? kept.h(load<F>(h_prev + b * a.ld_h + u, lanes), h) : h;
    }

    // tanh of what is normal.
    template <class Args>
    static FUSED_RNN_INLINE V shown(const Args& a, V normal, int64_t u, int lanes) {
        return act_of<Act>(a).state(normal * load<F>(a.norm.c + u, lanes) + load<F>(a.norm.c_shift + u, lanes));
    }

    struct Row {
        Moments<F> cells;
        F mean, slope;  // of the gradient of what is normal
    };

    // From the gradients of h that came from later steps and from y: d_o, left in its place; in dgh the gradients of what is
    // normal, and behind them c as o saw it.
    template <class S>
    static FUSED_RNN_OUTLINE Row start(const BackwardArgs<F, S>& a, int64_t t, int64_t b, int64_t n, const F* began,
                                       int64_t n_before, const F* later, const S* dy) {
        constexpr int W = Simd<F>::W;
        const int64_t H = a.H, row = (n - a.dg_row) * a.ld_dg;
        const S* const o_row = a.saved.gates_of(n) + of_o(a) * H;
        F* const cells = a.dgh + row + H;
        for (int64_t u = 0; u < H; u += W) {
            const int lanes = H - u < W ? static_cast<int>(H - u) : W;
            store(cells + u, Plain::cell(a, n, began, n_before, u, lanes, kept_by<Plain>(a, t, b, u)), lanes);
        }
        const Act act = act_of<Act>(a);
        const NormSums<F> sums(a, b);
        const Moments<F> moments = moments_of<F>(cells, H);
        V sum = {}, product = {};
        for (int64_t u = 0; u < H; u += W) {
            const int lanes = H - u < W ? static_cast<int>(H - u) : W;
            const V normal = moments.normal(load<F>(cells + u, lanes));
            const V whole = dy ? load<F>(later + u, lanes) + load<F>(dy + u, lanes) : load<F>(later + u, lanes);
            const V dh = kept_by<Plain>(a, t, b, u).to_new_h(whole);
            const V tc = shown(a, normal, u, lanes), o = load<F>(o_row + u, lanes), d = act.state_grad(tc, dh * o);
            store(a.dgx + row + of_o(a) * H + u, act.gate_grad(o, dh * tc), lanes);
            store(sums.gain_c + u, load<F>(sums.gain_c + u, lanes) + d * normal, lanes);
            store(sums.shift_c + u, load<F>(sums.shift_c + u, lanes) + d, lanes);
            const V scaled = d * load<F>(a.norm.c + u, lanes);
            store(a.dgh + row + u, scaled, lanes);
            sum += scaled;
            product += scaled * normal;
        }
        return {moments, sum_lanes<F>(sum) / F(H), sum_lanes<F>(product) / F(H)};
    }

    template <class S, class Kept>
    static FUSED_RNN_INLINE V backward(const BackwardArgs<F, S>& a, int64_t b, int64_t n, const F* began,
                                       int64_t n_before, int64_t u, int lanes, V dh, const Kept& kept, const Row& row) {
        const int64_t at = (n - a.dg_row) * a.ld_dg + u;
        const V c = load<F>(a.dgh + at + a.H, lanes), normal = row.cells.normal(c);
        const V scaled = load<F>(a.dgh + at, lanes);
        const V through = cut<F>(row.cells.scale * (scaled - row.mean - normal * row.slope), lanes);
        const V d_o = load<F>(a.dgx + at + of_o(a) * a.H, lanes);
        const V dc = Plain::retreat_apart(a, b, n, began, n_before, u, lanes, d_o, through, kept);
        if (kept.of_h) store(a.dh + b * a.ld_dh + u, kept.to_old_h(dh), lanes);
        if (!a.w_ch) return dc;
        F* const sums = NormSums<F>(a, b).w_ch + u;
        const auto add = [&](int64_t gate, V seen) __attribute__((always_inline)) {
            F* const to = sums + (gate == of_o(a) ? gate - 1 : gate) * a.H;
            store(to, load<F>(to, lanes) + load<F>(a.dgx + at + gate * a.H, lanes) * seen, lanes);
        };
        const V c_prev = state_before(a, began, n_before, u, lanes);
        for (int64_t gate = 0; gate < of_o(a) - 1; ++gate) add(gate, c_prev);  // i, unless coupled, and f
        add(of_o(a), c);
        return dc;
    }

  private:
    // The last of the gates.
    template <class Args>
    static FUSED_RNN_INLINE int64_t of_o(const Args& a) {
        return gates_of(a.cell, a.variant) - 1;
    }
};
