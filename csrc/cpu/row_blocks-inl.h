// One time step for a block of rows and units, forward and backward: what is the same for every cell (cell_rows-inl.h).
// Included inside an ISA namespace.

// What a row's units keep of their state in step t.
template <class Cell, class Args>
FUSED_RNN_INLINE auto kept_by([[maybe_unused]] const Args& a, [[maybe_unused]] int64_t t, [[maybe_unused]] int64_t b,
                              [[maybe_unused]] int64_t u) {
    using V = typename Cell::V;
    if constexpr (requires { Cell::kShows; }) {
        return zoneout_h<typename Cell::Scalar>(a, t, b, u);
    } else if constexpr (Cell::kVaries) {
        return zoneout_of<typename Cell::Scalar>(a, t, b, u);
    } else {
        return AllNew<V>{};
    }
}

// A cell that looks at whole rows before it takes them unit by unit; what it found goes to each.
template <class Cell>
concept TakesRows = requires { typename Cell::Row; };

// The second half of a step whose first one has told of its squares.
template <class Cell>
constexpr bool kTold = requires { Cell::kSecondHalf; };

// Forward. A state is set anew as soon as it is written: between two steps threads that share units read all of h, and
// none may write. The recurrent products lie at
// hg + (b - b0) * row + gate * gate_stride + (u - u0) * unit_stride, for u of a vector's first unit.
template <class Cell, class F, class S>
FUSED_RNN_INLINE void forward_block(const ForwardArgs<F, S>& a, int64_t t, int64_t b0, int64_t b1, int64_t u0,
                                    int64_t u1, const F* hg, int64_t row, int64_t gate_stride, int64_t unit_stride,
                                    int next) {
    constexpr int W = Simd<F>::W;
    const int64_t H = a.H, first = a.seq.row(t);
    const int64_t final_from = a.final_from(t);
    const Marks reset = reset_after(a, t);
    const F* gx = a.gx_at(t);
    for (int64_t b = b0; b < b1; ++b) {
        const int64_t n = first + b;
        const auto units = [&](const auto&... found) __attribute__((always_inline)) {
            for (int64_t u = u0; u < u1; u += W) {
                const int lanes = u1 - u < W ? static_cast<int>(u1 - u) : W;
                const F* products = hg + (b - b0) * row + (u - u0) * unit_stride;
                const Vec<F> h = Cell::forward(a, b, n, u, lanes, gx + b * a.ld_gx + u, products, gate_stride,
                                               a.h[1 - next], kept_by<Cell>(a, t, b, u), found...);
                if (a.two_products) {
                    store(a.h_full + b * a.ld_c + u, h, lanes);
                    continue;
                }
                store(a.h[next] + b * a.ld_h + u, h, lanes);
                store(a.y + n * a.ld_y + u, h, lanes);
                if (b >= final_from) store(a.hn + b * H + u, h, lanes);
            }
        };
        if constexpr (TakesRows<Cell>) {
            units(Cell::start(a, t, b, n, gx + b * a.ld_gx, const_cast<F*>(hg) + (b - b0) * row, gate_stride));
        } else {
            units();
        }
        if (reset[b]) {
            if (is_lstm(a.cell)) copy_units(a.reset.c + b * a.reset.ld_c, u0, u1, a.c + b * a.ld_c);
            if (!a.two_products) copy_units(a.reset.h + b * a.reset.ld_h, u0, u1, a.h[next] + b * a.ld_h);
        }
        if (a.mask && !a.two_products) mask_state(a, b, u0, u1, next);
    }
}

// Backward. `dh` is the gradient that reaches h of step t from later steps (and, where `add_dy`,
// not yet from y): without a projection these rows of a.dh. Previous state is the one of the step before in walking
// order, the initial, or the one that an episode begins from. `kAsked`: squares are.
template <class Cell, bool kAsked, class F, class S>
FUSED_RNN_INLINE void backward_block(const BackwardArgs<F, S>& a, int64_t t, int64_t b0, int64_t b1, int64_t u0,
                                     int64_t u1, const F* dh, int64_t row, bool add_dy) {
    constexpr int W = Simd<F>::W;
    constexpr bool kTells = kAsked && !kTold<Cell>;
    const int64_t first = a.seq.row(t);
    const int64_t before = a.reverse ? t + 1 : t - 1;
    const int64_t has_before = a.seq.rows(before);
    const int64_t first_before = has_before ? a.seq.row(before) : 0;
    const Marks reset = reset_after(a, t), anew = reset_before(a, t);
    const int64_t gates = a.saved.gates ? saved_gates_of(a.cell, a.variant) : 0;
    for (int64_t b = b0; b < b1; ++b) {
        const int64_t n = first + b;
        const F* began = anew[b] ? a.anew(b) : b < has_before ? nullptr : a.initial(b);
        if (reset[b]) {
            if (is_lstm(a.cell)) move_units(a.dc, b * a.ld_c, u0, u1, a.dc_reset);
            if (!a.two_products) {
                move_units(a.dh, b * a.ld_dh, u0, u1, a.dh_reset);
                if (kTells && a.kept) move_units<F>(a.kept, b * a.ld_dh, u0, u1, nullptr);
            }
        }
        if (!kTells && a.dcells) add_units(a.dcells + n * a.ld_dcells, u0, u1, a.dc + b * a.ld_c);
        [[maybe_unused]] RowSquares<F, S> squares;
        const auto later = [&](int64_t u, int lanes) __attribute__((always_inline)) {
            return load<F>(dh + (b - b0) * row + (u - u0), lanes);
        };
        const auto gradient = [&](int64_t u, int lanes) __attribute__((always_inline)) {
            return add_dy ? later(u, lanes) + load<F>(a.dy + n * a.ld_dy + u, lanes) : later(u, lanes);
        };
        const auto units = [&](const auto&... found) __attribute__((always_inline)) {
            for (int64_t u = u0; u < u1; u += W) {
                const int lanes = u1 - u < W ? static_cast<int>(u1 - u) : W;
                if (b + 1 < b1) ask_for_units(a, gates, n + 1, first_before + b + 1, u);
                if constexpr (kTells) tell_later<Cell>(a, b, n, u, lanes, later(u, lanes), squares);
                const Vec<F> g = gradient(u, lanes);
                [[maybe_unused]] const Vec<F> dc =
                    Cell::backward(a, b, n, began, first_before + b, u, lanes, g, kept_by<Cell>(a, t, b, u), found...);
                if constexpr (kTells) tell<Cell>(a, b, n, u, u1, lanes, g, dc, squares);
            }
        };
        if constexpr (TakesRows<Cell>) {
            units(Cell::start(a, t, b, n, began, first_before + b, dh + (b - b0) * row,
                              add_dy ? a.dy + n * a.ld_dy : nullptr));
        } else {
            units();
        }
    }
}

// The gates of rows [n0, n1) of the sequence again, where only states were kept. The recurrent products of row n lie at
// hg + (n - n0) * G*H (without n, where that has a product of its own).
template <class Cell, class F, class S>
FUSED_RNN_INLINE void rebuild_block(const ForwardArgs<F, S>& a, int64_t n0, int64_t n1, const F* hg) {
    constexpr int W = Simd<F>::W;
    const int64_t H = a.H, row = gates_of_h(a.cell, a.variant) * H;
    for (int64_t n = n0; n < n1; ++n) {
        for (int64_t u = 0; u < H; u += W)
            Cell::rebuild(a, n, u, H - u < W ? static_cast<int>(H - u) : W, a.gx + (n - a.gx_row) * a.ld_gx + u,
                          hg + (n - n0) * row + u, H);
    }
}
