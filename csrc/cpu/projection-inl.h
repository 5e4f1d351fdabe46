// Whole rows beside the cells: what resets do to them, and the projection of an LSTM (Sak et al. 2014), forward and
// backward. Included inside an ISA namespace.

// Units [u0, u1) of one row.
template <class F>
void copy_units(const F* from, int64_t u0, int64_t u1, F* to) {
    for (int64_t u = u0; u < u1; ++u) to[u] = from[u];
}
// Takes them out of a gradient, in the row that begins at `row`, and adds them to `sums` where these are kept.
template <class F>
void move_units(F* gradient, int64_t row, int64_t u0, int64_t u1, F* sums) {
    for (int64_t k = row + u0; k < row + u1; ++k) {
        if (sums) sums[k] += gradient[k];
        gradient[k] = F(0);
    }
}
template <class F, class S>
void add_units(const S* from, int64_t u0, int64_t u1, F* to) {
    constexpr int W = Simd<F>::W;
    for (int64_t u = u0; u < u1; u += W) {
        const int lanes = u1 - u < W ? static_cast<int>(u1 - u) : W;
        store(to + u, load<F>(to + u, lanes) + load<F>(from + u, lanes), lanes);
    }
}

// The second half of a projected LSTM's step: r = W_hr h is what the layer shows and feeds back.
template <class F, class S>
void project_rows(const ForwardArgs<F, S>& a, int64_t t, int64_t b0, int64_t b1, int64_t first, int64_t count,
                  const F* r, int64_t row, int next, int64_t final_from) {
    constexpr int W = Simd<F>::W;
    const int64_t end = first + count < a.R ? first + count : a.R;
    const bool zoneout = a.variant.zoneout_h > 0;
    const Marks reset = reset_after(a, t);
    for (int64_t b = b0; b < b1; ++b) {
        const int64_t n = a.seq.row(t) + b;
        for (int64_t u = first; u < end; u += W) {
            const int lanes = end - u < W ? static_cast<int>(end - u) : W;
            Vec<F> v = load<F>(r + (b - b0) * row + (u - first), lanes);
            if (zoneout) v = zoneout_h<F>(a, t, b, u).h(load<F>(a.h[1 - next] + b * a.ld_h + u, lanes), v);
            store(a.h[next] + b * a.ld_h + u, v, lanes);
            store(a.y + n * a.ld_y + u, v, lanes);
            if (b >= final_from) store(a.hn + b * a.R + u, v, lanes);
        }
        if (reset[b]) copy_units(a.reset.h + b * a.reset.ld_h, first, end, a.h[next] + b * a.ld_h);
        if (a.mask) mask_state(a, b, first, end, next);
    }
}

// dr of step t: what later steps and y send to the projected h, but for what passes it by.
template <class F, class S>
void output_gradient_rows(const BackwardArgs<F, S>& a, int64_t t, int64_t b0, int64_t b1, int64_t r0, int64_t r1) {
    constexpr int W = Simd<F>::W;
    const bool zoneout = a.variant.zoneout_h > 0;
    const Marks reset = reset_after(a, t);
    for (int64_t b = b0; b < b1; ++b) {
        const int64_t n = a.seq.row(t) + b;
        if (reset[b]) move_units(a.dh, b * a.ld_dh, r0, r1, a.dh_reset);
        RowSquares<F, S> squares;
        for (int64_t u = r0; u < r1; u += W) {
            const int lanes = r1 - u < W ? static_cast<int>(r1 - u) : W;
            Vec<F> g = load<F>(a.dh + b * a.ld_dh + u, lanes);
            if (a.squares) squares.add(kSquareLater, g);
            if (a.dy) g += load<F>(a.dy + n * a.ld_dy + u, lanes);
            if (a.squares) {
                squares.add(kSquareH, g);
                squares.template close<kSquareLater, kSquareH>(a, n, u, r1);
            }
            if (zoneout) {
                const Zoneout<Vec<F>> kept = zoneout_h<F>(a, t, b, u);
                store(a.dh + b * a.ld_dh + u, kept.to_old_h(g), lanes);
                g = kept.to_new_h(g);
            }
            store(a.dr + (n - a.dg_row) * a.ld_dr + u, g, lanes);
        }
    }
}

// o tanh(c) of rows [n0, n1) of the sequence: the projected LSTM's h before W_hr, which is not kept. `cells`: c of these
// rows as o saw it, [n1 - n0, H]; null: that is what was kept.
template <class F, class S>
void unprojected_rows(const BackwardArgs<F, S>& a, int64_t n0, int64_t n1, const F* cells, F* to) {
    constexpr int W = Simd<F>::W;
    const int64_t H = a.H, of_o = (gates_of(a.cell, a.variant) - 1) * H;
    for (int64_t n = n0; n < n1; ++n) {
        for (int64_t u = 0; u < H; u += W) {
            const int lanes = H - u < W ? static_cast<int>(H - u) : W;
            const Vec<F> o = load<F>(a.saved.gates_of(n) + of_o + u, lanes);
            const Vec<F> c = cells ? load<F>(cells + (n - n0) * H + u, lanes) : load<F>(a.saved.state_of(n) + u, lanes);
            const Vec<F> shown = a.variant.plain() ? Activations<S>::template Act<F>::state(c)
                                                   : act_of<typename Activations<S>::template Any<F>>(a).state(c);
            store(to + (n - n0) * H + u, o * shown, lanes);
        }
    }
}
