// Squares of what a backward loop carries, summed over the units of a row (BackwardArgs::squares), a block of units at a
// time: threads that share units share whole blocks, so the bits do not depend on them. In f64, as the square of a gradient
// that f32 still holds may be too small for it. Included inside an ISA namespace.

template <class F>
inline constexpr int64_t kSquareUnits = kMaxVectors * Simd<F>::W;

template <class Half>
FUSED_RNN_INLINE Vec<double> widened(Half v) {
#if FUSED_RNN_VECTOR_BYTES == 64  // of which g++ would make two halves
    return bits_as<Vec<double>>(_mm512_maskz_cvtps_pd(0xff, bits_as<__m256>(v)));
#else
    return __builtin_convertvector(v, Vec<double>);
#endif
}

template <class F>
struct SquareSum {
    Vec<double> low = {}, high = {};

    FUSED_RNN_INLINE void add(Vec<double> v) { low = multiply_add(v, v, low); }
    FUSED_RNN_INLINE void add(Vec<float> v) {
        typedef float Half __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES / 2)));
        Half halves[2];
        __builtin_memcpy(halves, &v, sizeof(v));
        const Vec<double> first = widened(halves[0]), second = widened(halves[1]);
        low = multiply_add(first, first, low);
        high = multiply_add(second, second, high);
    }
    FUSED_RNN_INLINE double total() const { return sum_lanes<double>(low + high); }
};

// The sums of a row while its units go by.
template <class F, class S>
struct RowSquares {
    SquareSum<F> of[kSquareCount];

    FUSED_RNN_INLINE void add(Square which, Vec<F> v) { of[which].add(v); }
    // After the vector of units at u: where it is the last of its block, these sums of row n are done.
    template <Square... kinds>
    FUSED_RNN_INLINE void close(const BackwardArgs<F, S>& a, int64_t n, int64_t u, int64_t u1) {
        if (u + Simd<F>::W < u1 && (u + Simd<F>::W) % kSquareUnits<F>) return;
        double* to = a.squares + n * a.ld_squares + u / kSquareUnits<F> * kSquareCount;
        ((to[kinds] = of[kinds].total()), ...);
        ((of[kinds] = {}), ...);
    }
};

// Adding up fills the window in which the processor looks ahead, and what the next row has saved would come late from
// memory: it is asked for here. Row n, whose state before lies in row n_before.
template <class F, class S>
FUSED_RNN_INLINE void ask_for_row(const BackwardArgs<F, S>& a, int64_t n, int64_t n_before, int64_t u0, int64_t u1) {
    constexpr int64_t kLine = 64 / sizeof(S);
    const int64_t gates = a.saved.gates ? saved_gates_of(a.cell, a.variant) : 0;
    for (int64_t u = u0; u < u1; u += kLine) {
        for (int64_t k = 0; k < gates; ++k) __builtin_prefetch(a.saved.gates_of(n) + k * a.H + u);
        __builtin_prefetch(a.saved.state_of(n_before) + u);
        if (a.dy && !a.two_products) __builtin_prefetch(a.dy + n * a.ld_dy + u);
    }
}

// What came from the step after, told before a cell's step: `later` to h, and in a.dc, to which only then dcells adds.
template <class Cell, class F, class S>
FUSED_RNN_INLINE void tell_later(const BackwardArgs<F, S>& a, int64_t b, int64_t n, int64_t u, int lanes, Vec<F> later,
                                 RowSquares<F, S>& squares) {
    if constexpr (Cell::kHasCell) {
        F* dc = a.dc + b * a.ld_c + u;
        const Vec<F> kept = load<F>(dc, lanes);
        squares.add(kSquareKept, kept);
        if (a.dcells) store(dc, kept + load<F>(a.dcells + n * a.ld_dcells + u, lanes), lanes);
        if (a.two_products) return;
    } else if (a.kept) {
        const Vec<F> kept = load<F>(a.kept + b * a.ld_dh + u, lanes);
        squares.add(kSquareKept, kept);
        squares.add(kSquareRecurrent, later - kept);
    }
    squares.add(kSquareLater, later);
}
// And after it: the whole gradients. A projection has told of h before.
template <class Cell, class F, class S>
FUSED_RNN_INLINE void tell(const BackwardArgs<F, S>& a, int64_t b, int64_t n, int64_t u, int64_t u1, int lanes,
                           Vec<F> dh, Vec<F> dc, RowSquares<F, S>& squares) {
    if constexpr (Cell::kHasCell) {
        squares.add(kSquareC, dc);
        if (a.two_products) return squares.template close<kSquareC, kSquareKept>(a, n, u, u1);
        squares.add(kSquareH, dh);
        squares.template close<kSquareH, kSquareC, kSquareLater, kSquareKept>(a, n, u, u1);
    } else {
        squares.add(kSquareH, dh);
        if (!a.kept) return squares.template close<kSquareH, kSquareLater>(a, n, u, u1);
        store(a.kept + b * a.ld_dh + u, load<F>(a.dh + b * a.ld_dh + u, lanes), lanes);
        squares.template close<kSquareH, kSquareLater, kSquareKept, kSquareRecurrent>(a, n, u, u1);
    }
}
