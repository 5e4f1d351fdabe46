// Products through matrix tiles (AMX): bf16 factors, f32 sums. A tile register holds 16 rows of 64 bytes: of the left
// factor 16 rows x 32 elements, of the right one 32 x 16 as pairs of rows side by side, of the sums 16 x 16.
// pack_tiles-inl.h lays factors out. Included inside the ISA namespace that has them.

constexpr int kTileRows = 16;
constexpr int64_t kBytesAtATime = 512 << 10;  // of a left factor: with a panel they stay in L2

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

// One product for each of up to four sums: the left tiles at `a` and `lower` below it, the right ones at `b` and `next`
// behind it, loaded where they are not the ones at hand.
template <bool two_rows, bool two_columns, bool load_left, bool load_right>
FUSED_RNN_INLINE void multiply_add_tiles(const bf16* a, int64_t lower, int64_t row, const bf16* b, int64_t next) {
    if constexpr (load_right) _tile_loadd(6, b, 64);
    if constexpr (load_left) _tile_loadd(4, a, row);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (two_columns) {
        if constexpr (load_right) _tile_loadd(7, b + next, 64);
        _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (two_rows) {
        if constexpr (load_left) _tile_loadd(5, a + lower, row);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (two_columns) _tile_dpbf16ps(3, 5, 7);
    }
}

// c (+)= a times vectors v and v + 1 of a panel, `rows` up to 32 rows; `depth` tiles of K.
template <int parts, bool two_rows, bool two_columns>
FUSED_RNN_INLINE void tile_block(const bf16* a, int64_t lda, const bf16* panel, int vectors, int64_t depth, float* c,
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
    constexpr int64_t next = parts * kTileElements;
    const int64_t a_row = lda * static_cast<int64_t>(sizeof(bf16)), a_lower = kTileRows * lda;
    for (int64_t k = 0; k < depth; ++k, a += parts * kTileDepth, panel += vectors * next) {
        if constexpr (parts == 1) {
            multiply_add_tiles<two_rows, two_columns, true, true>(a, a_lower, a_row, panel, next);
        } else {  // low times high, high times high, high times low: each keeps one side of the one before
            multiply_add_tiles<two_rows, two_columns, true, true>(a + kTileDepth, a_lower, a_row, panel, next);
            multiply_add_tiles<two_rows, two_columns, true, false>(a, a_lower, a_row, panel, next);
            multiply_add_tiles<two_rows, two_columns, false, true>(a, a_lower, a_row, panel + kTileElements, next);
        }
    }
    _tile_stored(0, c, row);
    if constexpr (two_columns) _tile_stored(1, c + 16, row);
    if constexpr (two_rows) _tile_stored(2, lower, row);
    if constexpr (two_rows && two_columns) _tile_stored(3, lower + 16, row);
}

// c (+)= a times one panel, for up to 32 rows.
template <int parts>
void tile_product(TileState& state, const bf16* a, int64_t lda, int64_t rows, const bf16* panel, int vectors,
                  int64_t depth, float* c, int64_t ldc, bool accumulate) {
    const int upper = upper_rows(rows);
    const bool two = rows > upper;
    state.rows(upper, static_cast<int>(rows) - upper);
    for (int v = 0; v < vectors; v += 2, panel += 2 * parts * kTileElements, c += 32) {
        const auto block = v + 1 < vectors ? (two ? tile_block<parts, true, true> : tile_block<parts, false, true>)
                                           : (two ? tile_block<parts, true, false> : tile_block<parts, false, false>);
        block(a, lda, panel, vectors, depth, c, ldc, accumulate);
    }
}

// How many rows of a left factor stay in L2 beside a panel: blocks of 32, at least one.
template <class S>
int64_t rows_at_once(int64_t K) {
    const int64_t blocks = kBytesAtATime / (kTwoTiles * tile_row<S>(K) * 2);
    return (blocks > 1 ? blocks : 1) * kTwoTiles;
}

// The left factor of a step's products, in tiles: narrowed once for all panels.
template <class S>
struct TileRows {
    using Packed = bf16;
    static constexpr int64_t kBlock = kTwoTiles;
    TileState state;
    const float* a = nullptr;
    int64_t ld = 0, K = 0, first = 0;
    bf16 *scratch = nullptr, *kept = nullptr, *taken = nullptr;

    // With `keep` they stay there, each at its place.
    void set(const float* rows, int64_t row, int64_t depth, bf16* keep = nullptr) {
        a = rows;
        ld = row;
        K = depth;
        kept = keep;
        if (!keep) scratch = static_cast<bf16*>(thread_scratch(rows_at_once<S>(K) * tile_row<S>(K) * 2));
    }
    // A panel serves them one after the other.
    int64_t blocks_at_once() const { return rows_at_once<S>(K) / kBlock; }
    void take(int64_t b, int64_t end) {
        first = b;
        taken = kept ? kept + b * tile_row<S>(K) : scratch;
        narrow_rows<S>(a + b * ld, ld, end - b, K, taken);
    }
    static int64_t packed_depth(int64_t K) { return whole_tiles<S>(K); }
    void multiply(int64_t b, int64_t end, const Panel<bf16>& panel, float* c, int64_t ldc, bool accumulate) {
        tile_product<kTileParts<S>>(state, taken + (b - first) * tile_row<S>(K), tile_row<S>(K), end - b, panel.data,
                                    panel.vectors, tiles_deep(K), c, ldc, accumulate);
    }
};

// c [M, columns] (+)= a times panels [p0, p1), for rows of `a` that are a left factor already.
template <class S, class To>
void multiply_narrowed(const bf16* a, int64_t lda, int64_t M, const bf16* panels, PanelShape shape, int64_t K,
                       int64_t p0, int64_t p1, To* c, int64_t ldc, bool accumulate) {
    constexpr int parts = kTileParts<S>;
    constexpr bool in_place = sizeof(To) == sizeof(float);
    const int64_t depth = tiles_deep(K);
    alignas(64) float sums[kTwoTiles * kMaxVectors * 16];
    TileState state;
    const int64_t most = rows_at_once<S>(K);
    for (int64_t r0 = 0; r0 < M; r0 += most) {
        const int64_t r1 = r0 + most < M ? r0 + most : M;
        for (int64_t p = p0; p < p1; ++p) {
            const int vectors = shape.vectors(p);
            const int64_t first = shape.first_column(p), width = vectors * 16, left = shape.columns - first;
            const bf16* panel = panels + shape.offset(p, whole_tiles<S>(K));
            for (int64_t r = r0; r < r1; r += kTwoTiles) {
                const int64_t rows = r1 - r < kTwoTiles ? r1 - r : kTwoTiles;
                To* to = c + r * ldc + first;
                if constexpr (in_place) {
                    if (left >= width) {
                        tile_product<parts>(state, a + r * lda, lda, rows, panel, vectors, depth, to, ldc, accumulate);
                        continue;
                    }
                }
                tile_product<parts>(state, a + r * lda, lda, rows, panel, vectors, depth, sums, width, false);
                store_sums(sums, width, rows, left < width ? left : width, to, ldc, accumulate);
            }
        }
    }
}

// The same for any rows: they pass through scratch memory, unless they are bf16 in whole tiles.
template <class S>
void multiply_tiles(const S* a, int64_t lda, int64_t M, const bf16* panels, PanelShape shape, int64_t K, int64_t p0,
                    int64_t p1, float* c, int64_t ldc, bool accumulate) {
    if constexpr (sizeof(S) == sizeof(bf16)) {
        if (K % kTileDepth == 0)
            return multiply_narrowed<S, float>(a, lda, M, panels, shape, K, p0, p1, c, ldc, accumulate);
    }
    const int64_t most = rows_at_once<S>(K);
    bf16* const scratch = static_cast<bf16*>(thread_scratch(most * tile_row<S>(K) * 2));
    for (int64_t r = 0; r < M; r += most) {
        const int64_t rows = M - r < most ? M - r : most;
        narrow_rows<S>(a + r * lda, lda, rows, K, scratch);
        multiply_narrowed<S, float>(scratch, tile_row<S>(K), rows, panels, shape, K, p0, p1, c + r * ldc, ldc,
                                    accumulate);
    }
}
