// Products through matrix tiles (AMX): bf16 factors, f32 sums. A tile register holds 16 rows of 64 bytes: of the left
// factor 16 rows x 32 elements, of the right one 32 x 16 as pairs of rows side by side, of the sums 16 x 16.
// Included inside the ISA namespace that has them.

constexpr int kTileRows = 16;
constexpr int64_t kTileElements = 16 * 32;  // of a right tile

// Which rows the eight tile registers have: sums 0 to 3, left factors 4 and 5, right ones 6 and 7. Two blocks of rows of
// up to 16 share every right tile.
class TileState {
  public:
    TileState() = default;
    TileState(const TileState&) = delete;
    ~TileState() {
        if (upper_ >= 0) _tile_release();
    }
    void rows(int upper, int lower) {
        if (upper == upper_ && lower == lower_) return;
        upper_ = upper;
        lower_ = lower;
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } config;
        for (int i = 0; i < 8; ++i) config.bytes[i] = 64;
        const int left[2] = {upper, lower > 0 ? lower : 1};
        for (int i = 0; i < 2; ++i) {
            config.rows[2 * i] = config.rows[2 * i + 1] = config.rows[4 + i] = static_cast<uint8_t>(left[i]);
            config.rows[6 + i] = kTileRows;
        }
        _tile_loadconfig(&config);
    }

  private:
    int upper_ = -1, lower_ = -1;
};

// Where a block of up to 32 rows is split: as even as tiles come.
constexpr int64_t kTwoTiles = 2 * kTileRows;
FUSED_RNN_INLINE int upper_rows(int64_t rows) { return static_cast<int>(rows < kTileRows ? rows : kTileRows); }

// c (+)= a times vectors v and v + 1 of a panel, `rows` up to 32 rows; K in whole tiles.
template <bool two_rows, bool two_columns>
FUSED_RNN_INLINE void tile_block(const bf16* a, int64_t lda, const bf16* panel, int vectors, int64_t K, float* c,
                                 int64_t ldc, bool accumulate) {
    const int64_t row = ldc * static_cast<int64_t>(sizeof(float));
    float* lower = c + kTileRows * ldc;
    if (accumulate) {
        _tile_loadd(0, c, row);
        if constexpr (two_columns) _tile_loadd(1, c + 16, row);
        if constexpr (two_rows) _tile_loadd(2, lower, row);
        if constexpr (two_rows && two_columns) _tile_loadd(3, lower + 16, row);
    } else {
        _tile_zero(0);
        if constexpr (two_columns) _tile_zero(1);
        if constexpr (two_rows) _tile_zero(2);
        if constexpr (two_rows && two_columns) _tile_zero(3);
    }
    const int64_t left = lda * static_cast<int64_t>(sizeof(bf16));
    for (int64_t k = 0; k < K; k += kTileDepth, panel += vectors * kTileElements) {
        _tile_loadd(6, panel, 64);
        _tile_loadd(4, a + k, left);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (two_columns) {
            _tile_loadd(7, panel + kTileElements, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (two_rows) {
            _tile_loadd(5, a + kTileRows * lda + k, left);
            _tile_dpbf16ps(2, 5, 6);
            if constexpr (two_columns) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, row);
    if constexpr (two_columns) _tile_stored(1, c + 16, row);
    if constexpr (two_rows) _tile_stored(2, lower, row);
    if constexpr (two_rows && two_columns) _tile_stored(3, lower + 16, row);
}

// c (+)= a times one panel, for up to 32 rows.
inline void tile_product(TileState& state, const bf16* a, int64_t lda, int64_t rows, const bf16* panel, int vectors,
                         int64_t K, float* c, int64_t ldc, bool accumulate) {
    const int upper = upper_rows(rows);
    const bool two = rows > upper;
    state.rows(upper, static_cast<int>(rows) - upper);
    for (int v = 0; v < vectors; v += 2, panel += 2 * kTileElements, c += 32) {
        const auto block = v + 1 < vectors ? (two ? tile_block<true, true> : tile_block<false, true>)
                                           : (two ? tile_block<true, false> : tile_block<false, false>);
        block(a, lda, panel, vectors, K, c, ldc, accumulate);
    }
}

// Rows in bf16, filled up with zeros to whole tiles of the summed dimension.
template <class From>
void narrow_rows(const From* a, int64_t lda, int64_t rows, int64_t K, bf16* to) {
    const int64_t padded_K = whole_tiles(K);
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t k = 0; k < padded_K; k += 16) {
            const int64_t left = K - k;
            const Vec<float> v = left <= 0 ? Vec<float>{} : load<float>(a + r * lda + k, left < 16 ? int(left) : 16);
            store(to + r * padded_K + k, v, 16);
        }
    }
}

// Columns of panel p's vector v: where they begin and how many there are.
struct PanelColumns {
    int64_t first;
    int count;
};
FUSED_RNN_INLINE PanelColumns panel_columns(const PanelShape& shape, int64_t p, int v) {
    const int64_t unit = shape.first_column(p) + (shape.gates > 1 ? 0 : v * 16);
    const int64_t left = shape.columns - unit;
    return {unit, left < 16 ? static_cast<int>(left) : 16};
}

// Right tiles whose columns are rows of w: pairs of neighbours along K are one 32-bit element, and a tile a transposition.
inline void pack_tiles_transposed(const bf16* w, int64_t ld, int64_t K, PanelShape shape, int64_t p0, int64_t p1,
                                  bf16* out) {
    const int64_t padded_K = whole_tiles(K);
    for (int64_t p = p0; p < p1; ++p) {
        const int vectors = shape.vectors(p);
        bf16* panel = out + shape.offset(p, padded_K);
        for (int v = 0; v < vectors; ++v) {
            const auto [first, count] = panel_columns(shape, p, v);
            const bf16* rows = w + ((shape.gates > 1 ? v * shape.columns : 0) + first) * ld;
            for (int64_t k = 0; k < K; k += kTileDepth) {
                const int64_t left = K - k < kTileDepth ? K - k : kTileDepth;
                Vec<float> x[16];
                for (int i = 0; i < 16; ++i) {
                    alignas(64) bf16 row[kTileDepth] = {};
                    if (i < count) __builtin_memcpy(row, rows + i * ld + k, static_cast<size_t>(left) * sizeof(bf16));
                    __builtin_memcpy(&x[i], row, sizeof(row));
                }
                transpose_stage<float, 1>(x);
                bf16* tile = panel + (k / kTileDepth * vectors + v) * kTileElements;
                for (int i = 0; i < 16; ++i) __builtin_memcpy(tile + i * 32, &x[i], 64);
            }
        }
    }
}

FUSED_RNN_INLINE U32 bits_of(const bf16* p, int n) {
    return __builtin_convertvector(load_lanes<U16>(reinterpret_cast<const uint16_t*>(p), n), U32);
}
FUSED_RNN_INLINE U32 bits_of(const float* p, int n) { return bf16_bits(load<float>(p, n)); }

// Right tiles whose columns are columns of w: two rows of w, interleaved.
template <class From>
void pack_tiles_plain(const From* w, int64_t ld, int64_t K, PanelShape shape, int64_t p0, int64_t p1, bf16* out) {
    const int64_t padded_K = whole_tiles(K);
    for (int64_t p = p0; p < p1; ++p) {
        const int vectors = shape.vectors(p);
        bf16* panel = out + shape.offset(p, padded_K);
        for (int64_t k = 0; k < padded_K; k += 2) {
            for (int v = 0; v < vectors; ++v) {
                const auto [first, count] = panel_columns(shape, p, v);
                const auto row = [&, first = first, count = count](int64_t r) {
                    return r < K ? bits_of(w + r * ld + first, count) : U32{};
                };
                const U32 both = row(k) | row(k + 1) << 16;
                bf16* tile = panel + (k / kTileDepth * vectors + v) * kTileElements;
                __builtin_memcpy(tile + k % kTileDepth / 2 * 32, &both, 64);
            }
        }
    }
}

// out[c][r] = a[r][c] in bf16, rows of `out` filled up with zeros to whole tiles.
inline void narrow_transposed(const float* a, int64_t lda, int64_t rows, int64_t c0, int64_t c1, bf16* out) {
    const int64_t ld = whole_tiles(rows);
    for (int64_t c = c0; c < c1; c += 16) {
        const int count = c1 - c < 16 ? static_cast<int>(c1 - c) : 16;
        for (int64_t r = 0; r < ld; r += 16) {
            Vec<float> x[16];
            for (int i = 0; i < 16; ++i) x[i] = r + i < rows ? load<float>(a + (r + i) * lda + c, count) : Vec<float>{};
            transpose_stage<float, 1>(x);
            for (int i = 0; i < count; ++i) store(out + (c + i) * ld + r, x[i], 16);
        }
    }
}

// The left factor of a step's products, in tiles: narrowed once for all panels.
struct TileRows {
    using Packed = bf16;
    static constexpr int64_t kBlock = kTwoTiles;
    static constexpr bool kRowsFirst = true;
    TileState state;
    const float* a = nullptr;
    int64_t ld = 0, K = 0, first = 0;
    bf16* scratch = nullptr;

    void set(const float* rows, int64_t row, int64_t depth) {
        a = rows;
        ld = row;
        K = depth;
        scratch = static_cast<bf16*>(thread_scratch(kBlock * packed_depth() * 2));
    }
    void take(int64_t b, int64_t end) {
        first = b;
        narrow_rows(a + b * ld, ld, end - b, K, scratch);
    }
    int64_t packed_depth() const { return whole_tiles(K); }
    void multiply(int64_t b, int64_t end, const bf16* panel, int vectors, float* c, int64_t ldc, bool accumulate) {
        tile_product(state, scratch + (b - first) * packed_depth(), packed_depth(), end - b, panel, vectors,
                     packed_depth(), c, ldc, accumulate);
    }
};

// c [M, columns] (+)= a times panels [p0, p1). Rows of `a` that are not bf16 in whole tiles pass through scratch memory.
template <class From>
void multiply_tiles(const From* a, int64_t lda, int64_t M, const bf16* panels, PanelShape shape, int64_t K, int64_t p0,
                    int64_t p1, float* c, int64_t ldc, bool accumulate) {
    constexpr int64_t kRows = 256;  // at a time: with a panel they stay in L2
    const int64_t padded_K = whole_tiles(K);
    const bool ready = sizeof(From) == sizeof(bf16) && K == padded_K;
    bf16* const scratch = static_cast<bf16*>(ready ? nullptr : thread_scratch(kRows * padded_K * 2));
    alignas(64) float sums[kTwoTiles * kMaxVectors * 16];
    TileState state;
    for (int64_t r0 = 0; r0 < M; r0 += kRows) {
        const int64_t r1 = r0 + kRows < M ? r0 + kRows : M;
        if (!ready) narrow_rows(a + r0 * lda, lda, r1 - r0, K, scratch);
        const bf16* const left = ready ? reinterpret_cast<const bf16*>(a + r0 * lda) : scratch;
        const int64_t ld = ready ? lda : padded_K;
        for (int64_t p = p0; p < p1; ++p) {
            const int vectors = shape.vectors(p);
            const int64_t first = shape.first_column(p), width = vectors * 16;
            const bf16* panel = panels + shape.offset(p, padded_K);
            for (int64_t r = r0; r < r1; r += kTwoTiles) {
                const int64_t rows = r1 - r < kTwoTiles ? r1 - r : kTwoTiles;
                float* to = c + r * ldc + first;
                if (first + width <= shape.columns) {
                    tile_product(state, left + (r - r0) * ld, ld, rows, panel, vectors, padded_K, to, ldc, accumulate);
                    continue;
                }
                tile_product(state, left + (r - r0) * ld, ld, rows, panel, vectors, padded_K, sums, width, false);
                for (int64_t i = 0; i < rows; ++i) {
                    for (int64_t k = 0; k < shape.columns - first; k += 16) {
                        const int64_t left_over = shape.columns - first - k;
                        const int n = left_over < 16 ? static_cast<int>(left_over) : 16;
                        Vec<float> v = load<float>(sums + i * width + k, 16);
                        if (accumulate) v += load<float>(to + i * ldc + k, n);
                        store(to + i * ldc + k, v, n);
                    }
                }
            }
        }
    }
}
