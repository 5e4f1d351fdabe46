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

// How a gradient goes through the normalisation of a row: what it takes, d of what came out times the gains, first goes by as
// a whole.
template <class F>
struct NormGrad {
    using V = Vec<F>;
    Moments<F> moments;
    V sum = {}, product = {};
    F mean = 0, slope = 0;  // of the row

    explicit FUSED_RNN_INLINE NormGrad(const Moments<F>& of) : moments(of) {}

    // Adds to the gradients of the gains; gives what through() takes.
    FUSED_RNN_INLINE V look(V d, V normal, const F* gains, F* gain_sums, int lanes) {
        const V scaled = d * load<F>(gains, lanes);
        sum += scaled;
        product += scaled * normal;
        store(gain_sums, load<F>(gain_sums, lanes) + d * normal, lanes);
        return scaled;
    }
    FUSED_RNN_INLINE void close(int64_t count) {
        mean = sum_lanes<F>(sum) / F(count);
        slope = sum_lanes<F>(product) / F(count);
    }
    FUSED_RNN_INLINE V through(V scaled, V normal) const { return moments.scale * (scaled - mean - normal * slope); }
};

// After the cells of a row: its dgx and dgh become gradients of the products themselves. Where both sides have one gradient
// the cells have left it in dgx alone.
template <class F, class S>
void normalise_products_grad(const BackwardArgs<F, S>& a, int64_t b, int64_t n) {
    constexpr int W = Simd<F>::W;
    const int64_t GH = gates_of(a.cell, a.variant) * a.H;
    F *const dgx = a.dgx + (n - a.dg_row) * a.ld_dg, *const dgh = a.dgh + (n - a.dg_row) * a.ld_dg;
    const S *const kept_x = a.saved.gates_of(n) + saved_activations_of(a.cell, a.variant) * a.H, *kept_h = kept_x + GH;
    const bool apart = biases_apart(a.cell, a.variant);
    const F* const from_h = apart ? dgh : dgx;
    const NormSums<F> sums(a, b);
    NormGrad<F> x(moments_of<F>(kept_x, GH)), h(moments_of<F>(kept_h, GH));
    for (int64_t k = 0; k < GH; k += W) {
        const int lanes = GH - k < W ? static_cast<int>(GH - k) : W;
        const Vec<F> dx = load<F>(dgx + k, lanes), dh = load<F>(from_h + k, lanes);
        store(sums.shift_x + k, load<F>(sums.shift_x + k, lanes) + dx, lanes);
        if (apart) store(sums.shift_h + k, load<F>(sums.shift_h + k, lanes) + dh, lanes);
        x.look(dx, x.moments.normal(load<F>(kept_x + k, lanes)), a.norm.x + k, sums.gain_x + k, lanes);
        h.look(dh, h.moments.normal(load<F>(kept_h + k, lanes)), a.norm.h + k, sums.gain_h + k, lanes);
    }
    x.close(GH);
    h.close(GH);
    for (int64_t k = 0; k < GH; k += W) {
        const int lanes = GH - k < W ? static_cast<int>(GH - k) : W;
        const Vec<F> dx = load<F>(dgx + k, lanes) * load<F>(a.norm.x + k, lanes);
        const Vec<F> dh = load<F>(from_h + k, lanes) * load<F>(a.norm.h + k, lanes);
        store(dgx + k, x.through(dx, x.moments.normal(load<F>(kept_x + k, lanes))), lanes);
        store(dgh + k, h.through(dh, h.moments.normal(load<F>(kept_h + k, lanes))), lanes);
    }
}

// What an LSTM takes the activation of to show its cell.
template <class F>
FUSED_RNN_INLINE Vec<F> gained_cell(const Norm<F>& norm, Vec<F> normal, int64_t u, int lanes) {
    return normal * load<F>(norm.c + u, lanes) + load<F>(norm.c_shift + u, lanes);
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
        const V h = o * act_of<Act>(a).state(gained_cell(a.norm, cells.normal(load<F>(hg, lanes)), u, lanes));
        return kept.of_h ? kept.h(load<F>(h_prev + b * a.ld_h + u, lanes), h) : h;
    }

    using Row = NormGrad<F>;  // of c

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
        Row of_c(moments_of<F>(cells, H));
        for (int64_t u = 0; u < H; u += W) {
            const int lanes = H - u < W ? static_cast<int>(H - u) : W;
            const V normal = of_c.moments.normal(load<F>(cells + u, lanes));
            const V whole = dy ? load<F>(later + u, lanes) + load<F>(dy + u, lanes) : load<F>(later + u, lanes);
            const V dh = kept_by<Plain>(a, t, b, u).to_new_h(whole);
            const V tc = act.state(gained_cell(a.norm, normal, u, lanes)), o = load<F>(o_row + u, lanes);
            const V d = act.state_grad(tc, dh * o);
            store(a.dgx + row + of_o(a) * H + u, act.gate_grad(o, dh * tc), lanes);
            store(sums.shift_c + u, load<F>(sums.shift_c + u, lanes) + d, lanes);
            store(a.dgh + row + u, of_c.look(d, normal, a.norm.c + u, sums.gain_c + u, lanes), lanes);
        }
        of_c.close(H);
        return of_c;
    }

    template <class S, class Kept>
    static FUSED_RNN_INLINE V backward(const BackwardArgs<F, S>& a, int64_t b, int64_t n, const F* began,
                                       int64_t n_before, int64_t u, int lanes, V dh, const Kept& kept,
                                       const Row& of_c) {
        const int64_t at = (n - a.dg_row) * a.ld_dg + u;
        const V c = load<F>(a.dgh + at + a.H, lanes);
        const V through = cut<F>(of_c.through(load<F>(a.dgh + at, lanes), of_c.moments.normal(c)), lanes);
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
