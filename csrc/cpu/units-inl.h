// What is done to units of whole rows beside the cells. Included inside an ISA namespace.

// The state that a step began with: `began`, or what the step before left in row n_before.
template <class F, class S>
FUSED_RNN_INLINE Vec<F> state_before(const BackwardArgs<F, S>& a, const F* began, int64_t n_before, int64_t u,
                                     int lanes) {
    return began ? load<F>(began + u, lanes) : load<F>(a.saved.state_of(n_before) + u, lanes);
}

// A vector of units of row n, whose state before lies in row n_before, is asked for from memory before it is its turn.
template <class F, class S>
FUSED_RNN_INLINE void ask_for_units(const BackwardArgs<F, S>& a, int64_t gates, int64_t n, int64_t n_before,
                                    int64_t u) {
    for (int64_t k = 0; k < gates; ++k) __builtin_prefetch(a.saved.gates_of(n) + k * a.H + u);
    __builtin_prefetch(a.saved.state_of(n_before) + u);
    if (a.dy && !a.two_products) __builtin_prefetch(a.dy + n * a.ld_dy + u);
}

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
