// Steps of two products, the second of what the first one led to: a projected LSTM's, and those of a GRU whose reset gate
// comes before the product. Included inside an ISA namespace.

// The GRU of Cho et al. 2014. In a step's first half W_hh gives r and z, and r h for the second, which gives n and h'.
template <template <class> class ActT, class F>
struct GruBeforeRows {
    using V = Vec<F>;
    using Act = ActT<F>;
    using Scalar = F;
    static constexpr bool kVaries = true, kHasCell = false, kSecondHalf = true;

    // r h
    template <class S, class Kept>
    static FUSED_RNN_INLINE V forward(const ForwardArgs<F, S>& a, int64_t b, int64_t n, int64_t u, int lanes,
                                      const F* gx, const F* hg, int64_t gate_stride, const F* h_prev, const Kept&) {
        const V r = gate(a, u, lanes, gx, hg), z = gate(a, u + a.H, lanes, gx + a.H, hg + gate_stride);
        store(a.z + b * a.ld_c + u, z, lanes);
        if (a.saved.gates) keep(a, n, u, lanes, r, z);
        const int64_t at = b * a.ld_h + u;
        return r * masked(a.mask, at, lanes, load<F>(h_prev + at, lanes));
    }

    // h' from W_hn (r h)
    template <class S>
    static FUSED_RNN_INLINE V update(const ForwardArgs<F, S>& a, int64_t b, int64_t n, int64_t u, int lanes,
                                     const F* gx, V product, V h_prev, const Zoneout<V>& kept) {
        const V candidate = candidate_of(a, u, lanes, gx, product);
        const V h = kept.h(h_prev, gru_update(load<F>(a.z + b * a.ld_c + u, lanes), candidate, h_prev));
        if (a.saved.gates) store(a.saved.gates_of(n) + 2 * a.H + u, candidate, lanes);
        return h;
    }

    // r and z, and r h for their product.
    template <class S>
    static FUSED_RNN_INLINE void rebuild(const ForwardArgs<F, S>& a, int64_t n, int64_t u, int lanes, const F* gx,
                                         const F* hg, int64_t gate_stride) {
        const V r = gate(a, u, lanes, gx, hg), z = gate(a, u + a.H, lanes, gx + a.H, hg + gate_stride);
        keep(a, n, u, lanes, r, z);
        const int64_t row = n - a.gx_row;
        store(a.h_full + row * a.ld_c + u, r * load<F>(a.h[0] + row * a.ld_h + u, lanes), lanes);
    }

    template <class S>
    static FUSED_RNN_INLINE V candidate_of(const ForwardArgs<F, S>& a, int64_t u, int lanes, const F* gx, V product) {
        const int64_t at = 2 * a.H;
        return act_of<Act>(a).state(load<F>(gx + at, lanes) + load<F>(a.bias + at + u, lanes) + product);
    }

    // The second half of a step backward, from the gradient of r h.
    template <class S, class Kept>
    static FUSED_RNN_INLINE V backward(const BackwardArgs<F, S>& a, int64_t b, int64_t n, const F* began,
                                       int64_t n_before, int64_t u, int lanes, V drh, const Kept&) {
        const int64_t at = b * a.ld_dh + u;
        const V r = load<F>(a.saved.gates_of(n) + u, lanes);
        const V h_prev = state_before(a, began, n_before, u, lanes);
        const V seen = masked(a.mask, at, lanes, h_prev);
        // the product with W_hh is added to it
        store(a.dh + at, load<F>(a.dh + at, lanes) + masked(a.mask, at, lanes, drh * r), lanes);
        store(a.dgx + (n - a.dg_row) * a.ld_dg + u, act_of<Act>(a).gate_grad(r, drh * seen), lanes);
        if (a.rh) store(a.rh + (n - a.dg_row) * a.H + u, r * seen, lanes);
        return V{};
    }

  private:
    template <class S>
    static FUSED_RNN_INLINE V gate(const ForwardArgs<F, S>& a, int64_t at, int lanes, const F* gx, const F* hg) {
        return act_of<Act>(a).gate(load<F>(gx, lanes) + load<F>(a.bias + at, lanes) + load<F>(hg, lanes));
    }

    template <class S>
    static FUSED_RNN_INLINE void keep(const ForwardArgs<F, S>& a, int64_t n, int64_t u, int lanes, V r, V z) {
        S* to = a.saved.gates_of(n) + u;
        store(to, r, lanes);
        store(to + a.H, z, lanes);
    }
};

// The first half of its step backward, from dh of h'.
template <template <class> class ActT, class F>
struct GruUpdateRows {
    using V = Vec<F>;
    using Act = ActT<F>;
    using Scalar = F;
    static constexpr bool kVaries = true, kHasCell = false, kShows = true;

    template <class S, class Kept>
    static FUSED_RNN_INLINE V backward(const BackwardArgs<F, S>& a, int64_t b, int64_t n, const F* began,
                                       int64_t n_before, int64_t u, int lanes, V dh, const Kept& kept) {
        const int64_t H = a.H;
        const S* s = a.saved.gates_of(n) + u;
        const V h_prev = state_before(a, began, n_before, u, lanes);
        const GruGrad<V> d = gru_update_grad<Act, V>(load<F>(s + H, lanes), load<F>(s + 2 * H, lanes), h_prev,
                                                     kept.to_new_h(dh), act_of<Act>(a));
        store(a.dh + b * a.ld_dh + u, kept.of_h ? d.h_prev + kept.to_old_h(dh) : d.h_prev, lanes);
        F* to = a.dgx + (n - a.dg_row) * a.ld_dg + u;
        store(to + H, d.z, lanes);
        store(to + 2 * H, d.n, lanes);
        return V{};
    }
};

// Shows and feeds back value(b, n, u, lanes, v, h, kept), for a second product v and h of the step before.
template <class F, class S, class Value>
FUSED_RNN_INLINE void finish_rows(const ForwardArgs<F, S>& a, int64_t t, int64_t b0, int64_t b1, int64_t first,
                                  int64_t count, const F* products, int64_t row, int next, int64_t final_from,
                                  const Value& value) {
    constexpr int W = Simd<F>::W;
    const int64_t end = first + count < a.R ? first + count : a.R;
    const Marks reset = reset_after(a, t);
    for (int64_t b = b0; b < b1; ++b) {
        const int64_t n = a.seq.row(t) + b;
        for (int64_t u = first; u < end; u += W) {
            const int lanes = end - u < W ? static_cast<int>(end - u) : W;
            const Vec<F> h = value(b, n, u, lanes, load<F>(products + (b - b0) * row + (u - first), lanes),
                                   load<F>(a.h[1 - next] + b * a.ld_h + u, lanes), zoneout_h<F>(a, t, b, u));
            store(a.h[next] + b * a.ld_h + u, h, lanes);
            store(a.y + n * a.ld_y + u, h, lanes);
            if (b >= final_from) store(a.hn + b * a.R + u, h, lanes);
        }
        if (reset[b]) copy_units(a.reset.h + b * a.reset.ld_h, first, end, a.h[next] + b * a.ld_h);
        if (a.mask) mask_state(a, b, first, end, next);
    }
}

// The second half of a step: for a projected LSTM's the product is h itself.
template <class F, class S>
void second_rows(const ForwardArgs<F, S>& a, int64_t t, int64_t b0, int64_t b1, int64_t first, int64_t count,
                 const F* products, int64_t row, int next, int64_t final_from) {
    using V = Vec<F>;
    if (!a.variant.reset_before) {
        finish_rows(a, t, b0, b1, first, count, products, row, next, final_from,
                    [](int64_t, int64_t, int64_t, int, V v, V h_prev, const Zoneout<V>& kept)
                        __attribute__((always_inline)) { return kept.h(h_prev, v); });
        return;
    }
    const F* gx = a.gx_at(t);
    finish_rows(a, t, b0, b1, first, count, products, row, next, final_from,
                [&](int64_t b, int64_t n, int64_t u, int lanes, V v, V h_prev, const Zoneout<V>& kept)
                    __attribute__((always_inline)) {
                        return GruBeforeRows<Activations<S>::template Any, F>::update(
                            a, b, n, u, lanes, gx + b * a.ld_gx + u, v, h_prev, kept);
                    });
}

// n of rows [n0, n1) of the sequence again, after rebuild_rows; W_hn (r h) of row n lies at products + (n - n0) * H.
template <class F, class S>
void rebuild_candidates(const ForwardArgs<F, S>& a, int64_t n0, int64_t n1, const F* products) {
    constexpr int W = Simd<F>::W;
    const int64_t H = a.H;
    for (int64_t n = n0; n < n1; ++n) {
        for (int64_t u = 0; u < H; u += W) {
            const int lanes = H - u < W ? static_cast<int>(H - u) : W;
            const Vec<F> candidate = GruBeforeRows<Activations<S>::template Any, F>::candidate_of(
                a, u, lanes, a.gx + (n - a.gx_row) * a.ld_gx + u, load<F>(products + (n - n0) * H + u, lanes));
            store(a.saved.gates_of(n) + 2 * H + u, candidate, lanes);
        }
    }
}

// The c that o saw of rows [n0, n1) of the sequence, which zoneout may have thrown away, of c before the step,
// [n1 - n0, ld_c].
template <class F, class S>
void candidate_rows(const BackwardArgs<F, S>& a, int64_t n0, int64_t n1, const F* c_before, int64_t ld_c, F* to) {
    using Rows = LstmRows<Activations<S>::template Any, F>;
    constexpr int W = Simd<F>::W;
    for (int64_t n = n0; n < n1; ++n) {
        for (int64_t u = 0; u < a.H; u += W) {
            const int lanes = a.H - u < W ? static_cast<int>(a.H - u) : W;
            store(to + (n - n0) * a.H + u, Rows::candidate(a, n, c_before + (n - n0) * ld_c, 0, u, lanes), lanes);
        }
    }
}

// o tanh(c) of rows [n0, n1) of the sequence: the projected LSTM's h before W_hr, which is not kept. `cells`: c of these
// rows as o saw it, [n1 - n0, H]; null: that is what was kept.
template <class F, class S>
void unprojected_rows(const BackwardArgs<F, S>& a, int64_t n0, int64_t n1, const F* cells, F* to) {
    constexpr int W = Simd<F>::W;
    using Any = typename Activations<S>::template Any<F>;
    const int64_t H = a.H, of_o = (gates_of(a.cell, a.variant) - 1) * H;
    for (int64_t n = n0; n < n1; ++n) {
        const F* own = cells ? cells + (n - n0) * H : nullptr;
        Moments<F> moments{};
        if (a.variant.layer_norm) moments = own ? moments_of<F>(own, H) : moments_of<F>(a.saved.state_of(n), H);
        for (int64_t u = 0; u < H; u += W) {
            const int lanes = H - u < W ? static_cast<int>(H - u) : W;
            const Vec<F> o = load<F>(a.saved.gates_of(n) + of_o + u, lanes);
            Vec<F> c = own ? load<F>(own + u, lanes) : load<F>(a.saved.state_of(n) + u, lanes);
            if (a.variant.layer_norm) c = gained_cell(a.norm, moments.normal(c), u, lanes);
            const Vec<F> shown =
                a.variant.plain_units() ? Activations<S>::template Act<F>::state(c) : act_of<Any>(a).state(c);
            store(to + (n - n0) * H + u, o * shown, lanes);
        }
    }
}

// The first half of step t backward, columns [r0, r1): dr, of what later steps and y send to h, but for what passes it by.
template <class F, class S>
void output_gradient_rows(const BackwardArgs<F, S>& a, int64_t t, int64_t b0, int64_t b1, int64_t r0, int64_t r1) {
    constexpr int W = Simd<F>::W;
    const Marks reset = reset_after(a, t);
    for (int64_t b = b0; b < b1; ++b) {
        if (!reset[b]) continue;
        move_units(a.dh, b * a.ld_dh, r0, r1, a.dh_reset);
        if (a.kept) move_units<F>(a.kept, b * a.ld_dh, r0, r1, nullptr);
    }
    if (a.variant.reset_before) {
        using Cell = GruUpdateRows<Activations<S>::template Any, F>;
        const F* const dh = a.dh + b0 * a.ld_dh + r0;
        if (r0 < r1 && a.squares) backward_block<Cell, true>(a, t, b0, b1, r0, r1, dh, a.ld_dh, a.dy);
        if (r0 < r1 && !a.squares) backward_block<Cell, false>(a, t, b0, b1, r0, r1, dh, a.ld_dh, a.dy);
        return;
    }
    for (int64_t b = b0; b < b1; ++b) {
        const int64_t n = a.seq.row(t) + b;
        RowSquares<F, S> squares;
        for (int64_t u = r0; u < r1; u += W) {
            const int lanes = r1 - u < W ? static_cast<int>(r1 - u) : W;
            const Zoneout<Vec<F>> kept = zoneout_h<F>(a, t, b, u);
            Vec<F> g = load<F>(a.dh + b * a.ld_dh + u, lanes);
            if (a.squares) tell_later_h(a, b, u, lanes, g, squares);
            if (a.dy) g += load<F>(a.dy + n * a.ld_dy + u, lanes);
            if (a.squares) tell_h(a, n, u, r1, g, squares);
            if (kept.of_h) store(a.dh + b * a.ld_dh + u, kept.to_old_h(g), lanes);
            if (a.kept) store(a.kept + b * a.ld_dh + u, kept.to_old_h(g), lanes);
            store(a.dr + (n - a.dg_row) * a.ld_dr + u, kept.to_new_h(g), lanes);
        }
    }
}
