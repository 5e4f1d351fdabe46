// Small whole-row helpers: conversion between storage and compute types, column sums, and the
// activations as tests see them. Included inside an ISA namespace.

// F is what values pass through: the compute type, of which From or To is the storage type.
template <class F, class From, class To>
void copy_rows(const From* from, int64_t ld_from, int64_t rows, int64_t columns, To* to, int64_t ld_to) {
    constexpr int W = Simd<F>::W;
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < columns; c += W) {
            const int n = columns - c < W ? static_cast<int>(columns - c) : W;
            store(to + r * ld_to + c, load<F>(from + r * ld_from + c, n), n);
        }
    }
}

// sums[c] += the sum of values(r, c, lanes) over all rows. Eight interleaved sums a block, joined pairwise: short chains of
// additions keep the rounding error near that of a pairwise sum, and the adders busy.
template <class F, class Values>
FUSED_RNN_INLINE void add_columns(int64_t rows, int64_t columns, F* sums, const Values& values) {
    constexpr int W = Simd<F>::W;
    constexpr int kChains = 8;
    constexpr int64_t kBlock = 16 * kChains;
    for (int64_t c = 0; c < columns; c += W) {
        const int n = columns - c < W ? static_cast<int>(columns - c) : W;
        Vec<F> total = {};
        for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
            const int64_t r1 = r0 + kBlock < rows ? r0 + kBlock : rows;
            Vec<F> part[kChains] = {};
            int64_t r = r0;
            for (; r + kChains <= r1; r += kChains)
                for (int k = 0; k < kChains; ++k) part[k] += values(r + k, c, n);
            for (int k = 0; r + k < r1; ++k) part[k] += values(r + k, c, n);
            for (int step = kChains / 2; step > 0; step /= 2)
                for (int k = 0; k < step; ++k) part[k] += part[k + step];
            total += part[0];
        }
        store(sums + c, load<F>(sums + c, n) + total, n);
    }
}

// sums[c] += sum_r a[r][c]
template <class F>
void add_column_sums(const F* a, int64_t lda, int64_t rows, int64_t columns, F* sums) {
    add_columns(rows, columns, sums, [&](int64_t r, int64_t c, int n) { return load<F>(a + r * lda + c, n); });
}

// sums[c] += sum_r a[r][c] b[r][c]
template <class F>
void add_column_products(const F* a, int64_t lda, const F* b, int64_t ldb, int64_t rows, int64_t columns, F* sums) {
    add_columns(rows, columns, sums,
                [&](int64_t r, int64_t c, int n) { return load<F>(a + r * lda + c, n) * load<F>(b + r * ldb + c, n); });
}

template <class F, class S>
void sigmoid_n(const F* x, F* y, int64_t count) {
    constexpr int W = Simd<F>::W;
    for (int64_t k = 0; k < count; k += W) {
        const int n = count - k < W ? static_cast<int>(count - k) : W;
        store(y + k, Activations<S>::template Act<F>::gate(load<F>(x + k, n)), n);
    }
}

template <class F, class S>
void tanh_n(const F* x, F* y, int64_t count) {
    constexpr int W = Simd<F>::W;
    for (int64_t k = 0; k < count; k += W) {
        const int n = count - k < W ? static_cast<int>(count - k) : W;
        store(y + k, Activations<S>::template Act<F>::state(load<F>(x + k, n)), n);
    }
}
