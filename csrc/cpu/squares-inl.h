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
    FUSED_RNN_INLINE Vec<double> lanes() const { return low + high; }
};

// The sums of the lanes of two vectors, of each in the same order.
FUSED_RNN_INLINE void sum_two(Vec<double> x, Vec<double> y, double (&sums)[2]) {
    transpose_pair<Vec<double>, Simd<double>::I, 1>(x, y, AllLanes<Simd<double>::W>{});
    sum_lanes_to<double>(x + y, sums);
}

// The sums of a row while its units go by.
template <class F, class S>
struct RowSquares {
    SquareSum<F> of[kSquareCount];

    FUSED_RNN_INLINE void add(Square which, Vec<F> v) { of[which].add(v); }
    // After the vector of units at u: where it is the last of its block, these sums of row n are done.
    template <Square first, Square second = first>
    FUSED_RNN_INLINE void close(const BackwardArgs<F, S>& a, int64_t n, int64_t u, int64_t u1) {
        if (u + Simd<F>::W < u1 && (u + Simd<F>::W) % kSquareUnits<F>) return;
        double sums[2];
        sum_two(of[first].lanes(), of[second].lanes(), sums);
        const int64_t block = u / kSquareUnits<F>;
        *a.squares.of(first, n, block) = sums[0];
        if constexpr (second != first) *a.squares.of(second, n, block) = sums[1];
        of[first] = {};
        of[second] = {};
    }
};

// What was sent to h, u units on: what went past W_hh, and what through it.
template <class F, class S>
FUSED_RNN_INLINE void tell_parts(const BackwardArgs<F, S>& a, int64_t b, int64_t u, int lanes, Vec<F> sent,
                                 RowSquares<F, S>& squares) {
    const Vec<F> kept = load<F>(a.kept + b * a.ld_dh + u, lanes);
    squares.add(kSquareKept, kept);
    squares.add(kSquareRecurrent, sent - kept);
}
// Whether they are told where they arrive: a clip tells them ahead of itself.
template <class F, class S>
FUSED_RNN_INLINE bool tells_parts(const BackwardArgs<F, S>& a) {
    return a.kept && !a.variant.clips();
}

// Of h: what came from the step after, and the whole gradient.
template <class F, class S>
FUSED_RNN_INLINE void tell_later_h(const BackwardArgs<F, S>& a, int64_t b, int64_t u, int lanes, Vec<F> later,
                                   RowSquares<F, S>& squares) {
    squares.add(kSquareLaterH, later);
    if (tells_parts(a)) tell_parts(a, b, u, lanes, later, squares);
}
template <class F, class S>
FUSED_RNN_INLINE void tell_h(const BackwardArgs<F, S>& a, int64_t n, int64_t u, int64_t u1, Vec<F> dh,
                             RowSquares<F, S>& squares) {
    squares.add(kSquareH, dh);
    if (tells_parts(a)) squares.template close<kSquareKept, kSquareRecurrent>(a, n, u, u1);
    squares.template close<kSquareH, kSquareLaterH>(a, n, u, u1);
}

// The same before and after a cell's step; to a.dc only then dcells adds. A projection has told of h before.
template <class Cell, class F, class S>
FUSED_RNN_INLINE void tell_later(const BackwardArgs<F, S>& a, int64_t b, int64_t n, int64_t u, int lanes, Vec<F> later,
                                 RowSquares<F, S>& squares) {
    if constexpr (Cell::kHasCell) {
        F* dc = a.dc + b * a.ld_c + u;
        const Vec<F> later_c = load<F>(dc, lanes);
        squares.add(kSquareLaterC, later_c);
        if (a.dcells) store(dc, later_c + load<F>(a.dcells + n * a.ld_dcells + u, lanes), lanes);
        if (a.two_products) return;
    }
    tell_later_h(a, b, u, lanes, later, squares);
}
template <class Cell, class F, class S>
FUSED_RNN_INLINE void tell(const BackwardArgs<F, S>& a, int64_t b, int64_t n, int64_t u, int64_t u1, int lanes,
                           Vec<F> dh, Vec<F> dc, RowSquares<F, S>& squares) {
    if constexpr (Cell::kHasCell) {
        squares.add(kSquareC, dc);
        squares.template close<kSquareC, kSquareLaterC>(a, n, u, u1);
        if (a.two_products) return;
    }
    tell_h(a, n, u, u1, dh, squares);
    if (a.kept) store(a.kept + b * a.ld_dh + u, load<F>(a.dh + b * a.ld_dh + u, lanes), lanes);
}

// What step t sends to row n of the one before, all of it, before it is clipped: the same sums in the same order as where it
// arrives, so that they differ only where the clip has cut.
template <class F, class S>
void tell_sent(const BackwardArgs<F, S>& a, int64_t b, int64_t n) {
    constexpr int W = Simd<F>::W;
    RowSquares<F, S> squares;
    for (int64_t u = 0; u < a.R; u += W) {
        const int lanes = a.R - u < W ? static_cast<int>(a.R - u) : W;
        const Vec<F> sent = load<F>(a.dh + b * a.ld_dh + u, lanes);
        squares.add(kSquareSentH, sent);
        if (a.kept) tell_parts(a, b, u, lanes, sent, squares);
        squares.template close<kSquareSentH>(a, n, u, a.R);
        if (a.kept) squares.template close<kSquareKept, kSquareRecurrent>(a, n, u, a.R);
    }
    if (!is_lstm(a.cell)) return;
    for (int64_t u = 0; u < a.H; u += W) {
        squares.add(kSquareSentC, load<F>(a.dc + b * a.ld_c + u, a.H - u < W ? static_cast<int>(a.H - u) : W));
        squares.template close<kSquareSentC>(a, n, u, a.H);
    }
}
