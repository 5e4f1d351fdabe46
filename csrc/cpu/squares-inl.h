// Squares of what a backward loop carries, summed over the units of a row (BackwardArgs::squares), a block of units at a
// time: threads that share units share whole blocks, so the bits do not depend on them. In f64, as the square of a gradient
// that f32 still holds may be too small for it. Included inside an ISA namespace.

template <class F>
inline constexpr int64_t kSquareUnits = kMaxVectors * Simd<F>::W;

template <class F>
struct SquareSum {
    Vec<double> sum = {};

    FUSED_RNN_INLINE void add(Vec<double> v) { sum = multiply_add(v, v, sum); }
    FUSED_RNN_INLINE void add(Vec<float> v) {
        typedef float Half __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES / 2)));
        Half halves[2];
        __builtin_memcpy(halves, &v, sizeof(v));
        add(__builtin_convertvector(halves[0], Vec<double>));
        add(__builtin_convertvector(halves[1], Vec<double>));
    }
    FUSED_RNN_INLINE double total() const {
        double total = 0;
        for (int k = 0; k < Simd<double>::W; ++k) total += sum[k];
        return total;
    }
};

// Where the sum of row n and the block of units around u goes.
template <class F, class S>
FUSED_RNN_INLINE double& square_at(const BackwardArgs<F, S>& a, int64_t n, int64_t u, Square which) {
    return a.squares[n * a.ld_squares + u / kSquareUnits<F> * kSquareCount + which];
}

// Sums over units [u0, u1) of row n, whose vector at unit u is values(u, lanes).
template <class F, class S, class Values>
FUSED_RNN_INLINE void store_squares(const BackwardArgs<F, S>& a, int64_t n, int64_t u0, int64_t u1, Square which,
                                    const Values& values) {
    constexpr int W = Simd<F>::W;
    for (int64_t first = u0; first < u1; first += kSquareUnits<F>) {
        const int64_t end = u1 - first < kSquareUnits<F> ? u1 : first + kSquareUnits<F>;
        SquareSum<F> sum;
        for (int64_t u = first; u < end; u += W) sum.add(values(u, end - u < W ? static_cast<int>(end - u) : W));
        square_at(a, n, first, which) = sum.total();
    }
}

// Of h: the whole gradient with dy, and what came from the step after, which is in row b of a.dh; what a GRU's z let pass
// apart from the product, to which it was added.
template <class F, class S>
FUSED_RNN_INLINE void store_squares_of_h(const BackwardArgs<F, S>& a, int64_t n, int64_t b, int64_t u0, int64_t u1) {
    const F* row = a.dh + b * a.ld_dh;
    const S* dy = a.dy ? a.dy + n * a.ld_dy : nullptr;
    const auto later = [&](int64_t u, int lanes) { return load<F>(row + u, lanes); };
    store_squares(a, n, u0, u1, kSquareLater, later);
    store_squares(a, n, u0, u1, kSquareH, [&](int64_t u, int lanes) {
        return dy ? later(u, lanes) + load<F>(dy + u, lanes) : later(u, lanes);
    });
    if (!a.kept) return;
    const auto kept = [&](int64_t u, int lanes) { return load<F>(a.kept + b * a.ld_dh + u, lanes); };
    store_squares(a, n, u0, u1, kSquareKept, kept);
    store_squares(a, n, u0, u1, kSquareRecurrent,
                  [&](int64_t u, int lanes) { return later(u, lanes) - kept(u, lanes); });
}

// Of c: what came from the step after. (The whole is known only in the cell's own step.)
template <class F, class S>
FUSED_RNN_INLINE void store_squares_of_c(const BackwardArgs<F, S>& a, int64_t n, int64_t b, int64_t u0, int64_t u1) {
    const F* later = a.dc + b * a.ld_c;
    store_squares(a, n, u0, u1, kSquareKept, [&](int64_t u, int lanes) { return load<F>(later + u, lanes); });
}
