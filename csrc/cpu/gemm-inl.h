// Register-tile products for the recurrent side, and the packing that feeds them. Included inside
// an ISA namespace.
//
// A panel holds `vectors` SIMD vectors of columns for every k: [K][vectors][W]. A tile keeps
// M rows x vectors accumulators in registers through a slab of K, each a single chain of fused
// multiply-adds in the order of k, and adds slab to slab. Slabs follow from K and the panel's width
// alone; so an element's bits do not depend on how rows and panels were shared out.

#if FUSED_RNN_VECTOR_BYTES == 64
constexpr int kAccumulators = 24;  // of 32 registers
#else
constexpr int kAccumulators = 12;  // of 16
#endif
constexpr int kMaxTileRows = 8;
constexpr int tile_rows(int vectors) {
    return kAccumulators / vectors < kMaxTileRows ? kAccumulators / vectors : kMaxTileRows;
}

// What to fetch into L2 while a tile is at work: so many lines from `line` on for each kAskedEvery of k.
constexpr int64_t kAskedEvery = 4, kLine = 64;
struct Ahead {
    const char* line;
    int64_t lines;
};

// c[m][v*W..] (+)= sum_k a[m*lda + k] * panel[k][v], or of a[k*lda + m] where `Across`. What is there is added last: a chain
// that began with it would round every small product to its size.
template <class F, int M, int NV, bool Across>
void tile(const F* a, int64_t lda, const F* panel, int64_t K, F* c, int64_t ldc, bool accumulate, Ahead ahead) {
    constexpr int W = Simd<F>::W;
    Vec<F> acc[M][NV] = {};
    const auto step = [&](int64_t k) __attribute__((always_inline)) {
        Vec<F> b[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) __builtin_memcpy(&b[v], panel + (k * NV + v) * W, sizeof(b[v]));
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const Vec<F> am = splat<Vec<F>>(Across ? a[k * lda + m] : a[m * lda + k]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) acc[m][v] = multiply_add(am, b[v], acc[m][v]);
        }
    };
    int64_t k = 0;
    for (; M > 1 && k + kAskedEvery <= K; k += kAskedEvery) {  // a single row waits for the panel alone
        for (int64_t i = 0; i < ahead.lines; ++i, ahead.line += kLine) __builtin_prefetch(ahead.line, 0, 2);
#pragma GCC unroll 4
        for (int64_t j = 0; j < kAskedEvery; ++j) step(k + j);
    }
    for (; k < K; ++k) step(k);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            F* out = c + m * ldc + v * W;
            if (accumulate) acc[m][v] += load(out, W);
            store(out, acc[m][v], W);
        }
    }
}

template <class F>
using TileFn = void (*)(const F*, int64_t, const F*, int64_t, F*, int64_t, bool, Ahead);

template <class F, bool Across>
TileFn<F> tile_fn(int rows, int vectors) {
#define FUSED_RNN_TILE(M, NV) M <= tile_rows(NV) ? tile<F, (M <= tile_rows(NV) ? M : 1), NV, Across> : nullptr
#define FUSED_RNN_TILES(NV)                                                                            \
    {                                                                                                  \
        FUSED_RNN_TILE(1, NV), FUSED_RNN_TILE(2, NV), FUSED_RNN_TILE(3, NV), FUSED_RNN_TILE(4, NV),    \
            FUSED_RNN_TILE(5, NV), FUSED_RNN_TILE(6, NV), FUSED_RNN_TILE(7, NV), FUSED_RNN_TILE(8, NV) \
    }
    static constexpr TileFn<F> table[kMaxVectors][kMaxTileRows] = {FUSED_RNN_TILES(1), FUSED_RNN_TILES(2),
                                                                   FUSED_RNN_TILES(3), FUSED_RNN_TILES(4)};
#undef FUSED_RNN_TILES
#undef FUSED_RNN_TILE
    return table[vectors - 1][rows - 1];
}

// Rows of the next tile when `left` rows remain: as even as they come, so that no tile of one row
// trails behind full ones.
FUSED_RNN_INLINE int next_rows(int64_t left, int vectors) {
    const int64_t most = tile_rows(vectors);
    const int64_t tiles = (left + most - 1) / most;
    return static_cast<int>((left + tiles - 1) / tiles);
}

// ---- panels -------------------------------------------------------------------------------------

// One of K x vectors, and which one its product is followed by (null: none that is not in cache already). `far`: it comes
// from past L2.
template <class T>
struct Panel {
    const T* data;
    int vectors;
    const T* then;
    bool far;
};

constexpr int64_t kSlabBytes = 24 << 10;
constexpr int64_t kBlockRows = 96;  // of products, which must stay in cache from slab to slab
constexpr int64_t kRowsToAsk = 4;

// What the first tile at a slab asks for: the slab of `depth` rows at `at`, `left` more to come in its panel, `first` in the
// first slab of any.
template <class F>
Ahead after_slab(const Panel<F>& panel, const F* at, int64_t depth, int64_t left, int64_t first, int64_t rows) {
    const int64_t row = panel.vectors * Simd<F>::W;
    const F* const next = left ? at + depth * row : panel.then;
    const int64_t tiles = (rows + tile_rows(panel.vectors) - 1) / tile_rows(panel.vectors);
    const int64_t asks = tiles * (depth / kAskedEvery);
    if (!next || !asks) return {};
    const int64_t lines = (left && left < first ? left : first) * row * static_cast<int64_t>(sizeof(F)) / kLine;
    return {reinterpret_cast<const char*>(next), (lines + asks - 1) / asks};
}

// Rows [0, rows) of c (+)= a times one panel, in register tiles; where `Across`, a^T times it: rows of c are columns of a. A
// slab of the panel that fits L1 serves all rows before the next one is fetched. Few rows keep to the slabs too, for the
// same bits. Of panels from past L2 the next slab, in the end the next panel's first, is fetched while one is at work: the
// processor by itself would begin when it is needed, at half of the rate. (But for so few rows that it looks far ahead.)
template <class F, bool Across = false>
void panel_product(const F* a, int64_t lda, int64_t rows, const Panel<F>& panel, int64_t K, F* c, int64_t ldc,
                   bool accumulate) {
    constexpr int W = Simd<F>::W;
    const int vectors = panel.vectors;
    const int64_t row_bytes = vectors * W * static_cast<int64_t>(sizeof(F));
    const int64_t slab = kSlabBytes / row_bytes;
    int64_t k = 0;
    do {  // once for K = 0, too: the sums are zero
        const int64_t depth = K - k < slab ? K - k : slab;
        const F* const at = panel.data + k * vectors * W;
        Ahead ahead = {};
        if (panel.far && rows >= kRowsToAsk)
            ahead = after_slab(panel, at, depth, K - k - depth, K < slab ? K : slab, rows);
        for (int64_t r = 0; r < rows;) {
            const int height = next_rows(rows - r, vectors);
            tile_fn<F, Across>(height, vectors)(a + (Across ? k * lda + r : r * lda + k), lda, at, depth, c + r * ldc,
                                                ldc, accumulate || k > 0, ahead);
            ahead.line += depth / kAskedEvery * ahead.lines * kLine;
            r += height;
        }
        k += slab;
    } while (k < K);
}

// In-register W x W transposition by butterflies: x[i][j] becomes x[j][i]. The two shuffles of a
// stage take, at lane k, one of x[i] or x[i + Step] (whose lanes count on from W); with constant
// lanes the compiler's generic shuffle does it on every target.
template <int W, int Step>
constexpr int low_lane(int k) {
    return k & Step ? W + k - Step : k;
}
template <int W, int Step>
constexpr int high_lane(int k) {
    return k & Step ? W + k : k + Step;
}

template <class V, class I, int Step, int... k>
FUSED_RNN_INLINE void transpose_pair(V& x, V& y, LaneNumbers<int, k...>) {
    constexpr int W = sizeof...(k);
    const V a = x, b = y;
#if defined(__clang__)
    x = __builtin_shufflevector(a, b, low_lane<W, Step>(k)...);
    y = __builtin_shufflevector(a, b, high_lane<W, Step>(k)...);
#else
    x = __builtin_shuffle(a, b, I{low_lane<W, Step>(k)...});
    y = __builtin_shuffle(a, b, I{high_lane<W, Step>(k)...});
#endif
}

template <class F, int Step>
FUSED_RNN_INLINE void transpose_stage(Vec<F>* x) {
    constexpr int W = Simd<F>::W;
    for (int i = 0; i < W; ++i) {
        if (i & Step) continue;
        transpose_pair<Vec<F>, typename Simd<F>::I, Step>(x[i], x[i + Step], AllLanes<W>{});
    }
    if constexpr (Step * 2 < W) transpose_stage<F, Step * 2>(x);
}

// panel[k][v][lane] = w[(row(v) + lane) * ld + k]: the rows of w become columns.
template <class F, class S>
void pack_transposed(const S* w, int64_t ld, int64_t K, PanelShape shape, int64_t p0, int64_t p1, F* out) {
    constexpr int W = Simd<F>::W;
    for (int64_t p = p0; p < p1; ++p) {
        const int vectors = shape.vectors(p);
        F* panel = out + shape.offset(p, K);
        for (int v = 0; v < vectors; ++v) {
            const int64_t unit = shape.first_column(p) + (shape.gates > 1 ? 0 : v * W);
            const S* rows = w + ((shape.gates > 1 ? v * shape.columns : 0) + unit) * ld;
            const int64_t left = shape.columns - unit;
            const int lanes = left < W ? static_cast<int>(left) : W;
            for (int64_t k = 0; k < K; k += W) {
                const int n = K - k < W ? static_cast<int>(K - k) : W;
                Vec<F> x[W];
                for (int i = 0; i < W; ++i) x[i] = i < lanes ? load<F>(rows + i * ld + k, n) : Vec<F>{};
                transpose_stage<F, 1>(x);
                for (int i = 0; i < n; ++i) store(panel + ((k + i) * vectors + v) * W, x[i], W);
            }
        }
    }
}

// panel[k][v][lane] = w[k * ld + column(v) + lane]: columns of w stay columns.
template <class F, class S>
void pack_plain(const S* w, int64_t ld, int64_t K, PanelShape shape, int64_t p0, int64_t p1, F* out) {
    constexpr int W = Simd<F>::W;
    for (int64_t p = p0; p < p1; ++p) {
        const int vectors = shape.vectors(p);
        F* panel = out + shape.offset(p, K);
        for (int64_t k = 0; k < K; ++k) {
            for (int v = 0; v < vectors; ++v) {
                const int64_t column = shape.first_column(p) + v * W;
                const int64_t left = shape.columns - column;
                const Vec<F> x = load<F>(w + k * ld + column, left < W ? static_cast<int>(left) : W);
                store(panel + (k * vectors + v) * W, x, W);
            }
        }
    }
}

// ---- products of a few rows with a row-major matrix: where packing would cost more than it saves ----

// Halves are added until so many lanes are left.
template <class F, int left, int count>
FUSED_RNN_INLINE void sum_halves(const F (&lanes)[count], F (&sums)[left]) {
    if constexpr (count == left) {
        __builtin_memcpy(sums, lanes, sizeof(lanes));
    } else {
        constexpr int half = count / 2;
        typedef F Half __attribute__((vector_size(half * sizeof(F))));
        Half low, high;
        __builtin_memcpy(&low, lanes, sizeof(low));
        __builtin_memcpy(&high, lanes + half, sizeof(high));
        low += high;
        F halved[half];
        __builtin_memcpy(halved, &low, sizeof(low));
        sum_halves<F, left, half>(halved, sums);
    }
}
template <class F, int left>
FUSED_RNN_INLINE void sum_lanes_to(Vec<F> v, F (&sums)[left]) {
    F lanes[Simd<F>::W];
    __builtin_memcpy(lanes, &v, sizeof(v));
    sum_halves<F, left, Simd<F>::W>(lanes, sums);
}

template <class F>
FUSED_RNN_INLINE F sum_lanes(Vec<F> v) {
    F sum[1];
    sum_lanes_to<F>(v, sum);
    return sum[0];
}

constexpr int kFewRows = 4;  // of `a`, which one pass over the weights serves

template <class F, class S, int M>
FUSED_RNN_INLINE void dot_few(const F* a, int64_t lda, const S* w, int64_t ldw, int64_t N, int64_t K, F* c, int64_t ldc,
                              bool accumulate) {
    constexpr int W = Simd<F>::W;
    constexpr int kRows = 4;
    for (int64_t n = 0; n < N; n += kRows) {
        const int rows = N - n < kRows ? static_cast<int>(N - n) : kRows;
        // A missing row repeats the last one: no branch in the chain, never stored.
        const S* from[kRows];
        for (int i = 0; i < kRows; ++i) from[i] = w + (n + (i < rows ? i : rows - 1)) * ldw;
        Vec<F> acc[kRows][M] = {};
        const auto step = [&](int64_t k, int lanes) __attribute__((always_inline)) {
            Vec<F> x[M];
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) x[m] = load<F>(a + m * lda + k, lanes);
#pragma GCC unroll 4
            for (int i = 0; i < kRows; ++i) {
                const Vec<F> weight = load<F>(from[i] + k, lanes);
#pragma GCC unroll 4
                for (int m = 0; m < M; ++m) acc[i][m] = multiply_add(x[m], weight, acc[i][m]);
            }
        };
        int64_t k = 0;
        for (; k + W <= K; k += W) step(k, W);
        if (k < K) step(k, static_cast<int>(K - k));
        for (int i = 0; i < rows; ++i) {
            for (int m = 0; m < M; ++m) {
                F* out = c + m * ldc + n + i;
                const F sum = sum_lanes<F>(acc[i][m]);
                *out = accumulate ? *out + sum : sum;
            }
        }
    }
}

template <class F, class S, int M>
FUSED_RNN_INLINE void sum_few(const F* a, int64_t lda, const S* w, int64_t ldw, int64_t N, int64_t K, F* c, int64_t ldc,
                              bool accumulate) {
    constexpr int W = Simd<F>::W;
    constexpr int kBlock = kAccumulators / kFewRows;
    for (int64_t k = 0; k < K; k += W * kBlock) {
        Vec<F> acc[kBlock][M] = {};
        int lanes[kBlock];
        for (int j = 0; j < kBlock; ++j) {
            const int64_t left = K - k - j * W;
            lanes[j] = left <= 0 ? 0 : left < W ? static_cast<int>(left) : W;
        }
        const bool whole = lanes[kBlock - 1] == W;
        for (int64_t n = 0; n < N; ++n) {
            const S* row = w + n * ldw + k;
#pragma GCC unroll 8
            for (int j = 0; j < kBlock; ++j) {
                if (!whole && !lanes[j]) continue;
                const Vec<F> weight = load<F>(row + j * W, whole ? W : lanes[j]);
#pragma GCC unroll 4
                for (int m = 0; m < M; ++m) acc[j][m] = multiply_add(splat<Vec<F>>(a[m * lda + n]), weight, acc[j][m]);
            }
        }
        for (int j = 0; j < kBlock; ++j) {
            for (int m = 0; m < M && lanes[j]; ++m) {
                F* out = c + m * ldc + k + j * W;
                if (accumulate) acc[j][m] += load<F>(out, lanes[j]);
                store(out, acc[j][m], lanes[j]);
            }
        }
    }
}

#define FUSED_RNN_BY_ROWS(FEW)                                              \
    for (int64_t m = 0; m < M; m += kFewRows) {                             \
        const F* from = a + m * lda;                                        \
        F* to = c + m * ldc;                                                \
        switch (M - m) {                                                    \
            case 1:                                                         \
                FEW<F, S, 1>(from, lda, w, ldw, N, K, to, ldc, accumulate); \
                break;                                                      \
            case 2:                                                         \
                FEW<F, S, 2>(from, lda, w, ldw, N, K, to, ldc, accumulate); \
                break;                                                      \
            case 3:                                                         \
                FEW<F, S, 3>(from, lda, w, ldw, N, K, to, ldc, accumulate); \
                break;                                                      \
            default:                                                        \
                FEW<F, S, 4>(from, lda, w, ldw, N, K, to, ldc, accumulate); \
                break;                                                      \
        }                                                                   \
    }

// c[m*ldc + n] (+)= sum_k a[m*lda + k] w[n*ldw + k]
template <class F, class S>
void dot_rows(const F* a, int64_t lda, int64_t M, const S* w, int64_t ldw, int64_t N, int64_t K, F* c, int64_t ldc,
              bool accumulate) {
    FUSED_RNN_BY_ROWS(dot_few)
}

// c[m*ldc + k] (+)= sum_n a[m*lda + n] w[n*ldw + k]
template <class F, class S>
void sum_rows(const F* a, int64_t lda, int64_t M, const S* w, int64_t ldw, int64_t N, int64_t K, F* c, int64_t ldc,
              bool accumulate) {
    FUSED_RNN_BY_ROWS(sum_few)
}
#undef FUSED_RNN_BY_ROWS

// c[n*ldc + k] (+)= sum_m a[m*lda + n] x[m*ldx + k]: the weight gradient of a few rows
template <class F, class To>
void outer_rows(const F* a, int64_t lda, int64_t M, const F* x, int64_t ldx, int64_t N, int64_t K, To* c, int64_t ldc,
                bool accumulate) {
    constexpr int W = Simd<F>::W;
    for (int64_t n = 0; n < N; ++n) {
        for (int64_t k = 0; k < K; k += W) {
            const int lanes = K - k < W ? static_cast<int>(K - k) : W;
            Vec<F> acc = accumulate ? load<F>(c + n * ldc + k, lanes) : Vec<F>{};
            for (int64_t m = 0; m < M; ++m)
                acc = multiply_add(splat<Vec<F>>(a[m * lda + n]), load<F>(x + m * ldx + k, lanes), acc);
            store(c + n * ldc + k, acc, lanes);
        }
    }
}
