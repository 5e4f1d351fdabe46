// Factors of products through matrix tiles, as gemm_tiles-inl.h reads them: each element in kTileParts<S> parts, filled up
// with zeros. A row of a left factor is [K/32][part][32], a panel of a right one [K/32][vector][part] tiles.
// Included inside an ISA namespace.

constexpr int64_t kTileElements = 16 * 32;  // of a right tile

// The bf16 that elements are taken as.
template <int parts>
struct Parts {
    U16 bits[parts];
};

// The instruction takes subnormal numbers for 0, as do tiles.
FUSED_RNN_INLINE void take_apart(Vec<float> v, Parts<1>& to) {
    to.bits[0] = bits_as<U16>(_mm512_cvtneps_pbh(bits_as<__m512>(v)));
}

// From here on the nearest bf16 is infinity.
constexpr uint32_t kLarge = 0x7f7f8000u, kInfinity = 0x7f800000u, kHighHalf = 0xffff0000u;

// Large numbers are cut where rounding would make them infinite. Infinity and NaN go into the rest, beside a high part of
// 1: infinity times the other factor's rest, which may be 0 or of the other sign, would be NaN.
FUSED_RNN_INLINE void take_apart_large(U32 bits, U32& high, U32& rest) {
    const U32 largest = splat<U32>(0x7f7fff00u);  // with a rest of as many bits as bf16 has
    const U32 sign = bits & 0x80000000u, magnitude = bits ^ sign;
    const U32 cut = magnitude > largest ? largest : magnitude, top = cut & kHighHalf;
    const U32 below = bits_as<U32>(bits_as<Vec<float>>(cut) - bits_as<Vec<float>>(top));
    const U32 special = magnitude > kInfinity ? splat<U32>(0x7fc00000u) : magnitude;
    high = magnitude < kLarge ? high : sign | (magnitude < kInfinity ? top : splat<U32>(0x3f800000u));
    rest = magnitude < kLarge ? rest : sign | (magnitude < kInfinity ? below : special);
}

// A high part and the rest, both rounded to nearest. Their sum is v within 2^-17 of it (of a large number 2^-16), and
// within 2^-126 where the rest is subnormal, which tiles take for 0.
FUSED_RNN_INLINE void take_apart(Vec<float> v, Parts<2>& to) {
    constexpr uint32_t kHalf = 0x8000u;
    const U32 bits = bits_as<U32>(v);
    U32 high = (bits + kHalf) & kHighHalf;
    U32 rest = bits_as<U32>(v - bits_as<Vec<float>>(high));
    const U32 magnitude = bits & 0x7fffffffu;
    if (_mm512_cmpge_epu32_mask(bits_as<__m512i>(magnitude), _mm512_set1_epi32(kLarge))) [[unlikely]]
        take_apart_large(bits, high, rest);
    to.bits[0] = __builtin_convertvector(high >> 16, U16);
    to.bits[1] = __builtin_convertvector((rest + kHalf) >> 16, U16);
}

// 16 elements of a left factor's row.
template <int parts>
FUSED_RNN_INLINE void store_parts(bf16* to, Vec<float> v) {
    Parts<parts> apart;
    take_apart(v, apart);
    for (int i = 0; i < parts; ++i) store_lanes(reinterpret_cast<uint16_t*>(to + i * kTileDepth), apart.bits[i], 16);
}

// What a row has in one tile, filled up with zeros.
template <int parts>
FUSED_RNN_INLINE void narrow_tile(const float* from, int64_t count, bf16* to) {
    for (int k = 0; k < kTileDepth; k += 16) {
        const int64_t left = count - k;
        store_parts<parts>(to + k, left <= 0 ? Vec<float>{} : load<float>(from + k, left < 16 ? int(left) : 16));
    }
}
template <int parts>
FUSED_RNN_INLINE void narrow_tile(const bf16* from, int64_t count, bf16* to) {
    static_assert(parts == 1, "bf16 has no rest");
    if (count >= kTileDepth) {  // without a call of memcpy for each
        __builtin_memcpy(to, from, kTileDepth * sizeof(bf16));
        return;
    }
    bf16 row[kTileDepth] = {};
    __builtin_memcpy(row, from, static_cast<size_t>(count) * sizeof(bf16));
    __builtin_memcpy(to, row, sizeof(row));
}

// Rows as a left factor.
template <class S, class From>
void narrow_rows(const From* a, int64_t lda, int64_t rows, int64_t K, bf16* to) {
    constexpr int parts = kTileParts<S>;
    for (int64_t r = 0; r < rows; ++r, to += tile_row<S>(K))
        for (int64_t k = 0; k < K; k += kTileDepth) narrow_tile<parts>(a + r * lda + k, K - k, to + k * parts);
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

// Right tiles whose columns are rows of w: pairs of neighbours along K are one 32-bit element, and a tile a transposition. The
// rows of the tile beside it are asked for meanwhile: of 16 rows at once the hardware sees no stream.
template <class S>
void pack_tiles_transposed(const S* w, int64_t ld, int64_t K, PanelShape shape, int64_t p0, int64_t p1, bf16* out) {
    constexpr int parts = kTileParts<S>;
    const int64_t padded_K = whole_tiles<S>(K);
    for (int64_t p = p0; p < p1; ++p) {
        const int vectors = shape.vectors(p);
        bf16* panel = out + shape.offset(p, padded_K);
        for (int v = 0; v < vectors; ++v) {
            const auto [first, count] = panel_columns(shape, p, v);
            const S* rows = w + ((shape.gates > 1 ? v * shape.columns : 0) + first) * ld;
            for (int64_t k = 0; k < K; k += kTileDepth) {
                Vec<float> x[parts][16] = {};
                for (int i = 0; i < count; ++i) {
                    __builtin_prefetch(rows + (i + 16) * ld + k);
                    alignas(64) bf16 row[parts * kTileDepth];
                    narrow_tile<parts>(rows + i * ld + k, K - k, row);
                    for (int part = 0; part < parts; ++part)
                        __builtin_memcpy(&x[part][i], row + part * kTileDepth, sizeof(x[part][i]));
                }
                bf16* tile = panel + (k / kTileDepth * vectors + v) * parts * kTileElements;
                for (int part = 0; part < parts; ++part, tile += kTileElements) {
                    transpose_stage<float, 1>(x[part]);
                    for (int i = 0; i < 16; ++i) __builtin_memcpy(tile + i * 32, &x[part][i], 64);
                }
            }
        }
    }
}

template <int parts>
FUSED_RNN_INLINE void load_parts(const float* from, int n, Parts<parts>& to) {
    take_apart(load<float>(from, n), to);
}
FUSED_RNN_INLINE void load_parts(const bf16* from, int n, Parts<1>& to) {
    to.bits[0] = load_lanes<U16>(reinterpret_cast<const uint16_t*>(from), n);
}

// Elements that lie side by side in a factor, as one of 32 bits.
FUSED_RNN_INLINE U32 pairs_of(U16 even, U16 odd) {
    return __builtin_convertvector(even, U32) | __builtin_convertvector(odd, U32) << 16;
}

// Right tiles whose columns are columns of w: two rows of w, interleaved.
template <class S, class From>
void pack_tiles_plain(const From* w, int64_t ld, int64_t K, PanelShape shape, int64_t p0, int64_t p1, bf16* out) {
    constexpr int parts = kTileParts<S>;
    const int64_t padded_K = whole_tiles<S>(K);
    for (int64_t p = p0; p < p1; ++p) {
        const int vectors = shape.vectors(p);
        bf16* panel = out + shape.offset(p, padded_K);
        for (int64_t k = 0; k < padded_K / parts; k += 2) {
            for (int v = 0; v < vectors; ++v) {
                const auto [first, count] = panel_columns(shape, p, v);
                Parts<parts> even = {}, odd = {};
                if (k < K) load_parts(w + k * ld + first, count, even);
                if (k + 1 < K) load_parts(w + (k + 1) * ld + first, count, odd);
                bf16* tile = panel + (k / kTileDepth * vectors + v) * parts * kTileElements;
                for (int part = 0; part < parts; ++part, tile += kTileElements) {
                    const U32 both = pairs_of(even.bits[part], odd.bits[part]);
                    __builtin_memcpy(tile + k % kTileDepth / 2 * 32, &both, 64);
                }
            }
        }
    }
}

// sums += both halves of all pairs.
FUSED_RNN_INLINE void add_pairs(const Vec<float>* pairs, float* sums, int64_t count) {
    Vec<float> low{}, high{};
    for (int i = 0; i < 16; ++i) {
        const U32 both = bits_as<U32>(pairs[i]);
        low += bits_as<Vec<float>>(both << 16);
        high += bits_as<Vec<float>>(both & kHighHalf);
    }
    const int n = static_cast<int>(count);
    store(sums, load<float>(sums, n) + low + high, n);
}

// Of 16 columns and up to 32 rows, pairs of rows; past the last row 0.
FUSED_RNN_INLINE void load_pairs(const bf16* a, int64_t lda, int64_t rows, Vec<float>* pairs) {
    const auto row = [&](int64_t r) __attribute__((always_inline)) {
        return r < rows ? load_lanes<U16>(reinterpret_cast<const uint16_t*>(a + r * lda), 16) : U16{};
    };
    for (int i = 0; i < 16; ++i) pairs[i] = bits_as<Vec<float>>(pairs_of(row(2 * i), row(2 * i + 1)));
}

// out[c][r] = a[r][c], both left factors: pairs of rows are one 32-bit element, and a tile a transposition. Two tiles of
// rows at a time, which are so many pages, each read to its end.
template <class S>
void transpose_narrowed(const bf16* a, int64_t lda, int64_t rows, int64_t c0, int64_t c1, bf16* out, float* sums) {
    constexpr int parts = kTileParts<S>;
    constexpr int64_t together = 2 * kTileDepth;
    const int64_t ld = tile_row<S>(rows);
    for (int64_t r0 = 0; r0 < rows; r0 += together) {
        for (int64_t c = c0; c < c1; c += 16) {
            const int64_t count = c1 - c < 16 ? c1 - c : 16;
            const bf16* column = a + c / kTileDepth * kTileDepth * parts + c % kTileDepth;
            for (int64_t r = r0; r < rows && r < r0 + together; r += kTileDepth) {
                for (int part = 0; part < parts; ++part) {
                    Vec<float> x[16];
                    load_pairs(column + r * lda + part * kTileDepth, lda, rows - r, x);
                    if (parts == 1 && sums) add_pairs(x, sums + c, count);
                    transpose_stage<float, 1>(x);
                    bf16* to = out + c * ld + r * parts + part * kTileDepth;
                    for (int64_t i = 0; i < count; ++i) __builtin_memcpy(to + i * ld, &x[i], 64);
                }
            }
        }
    }
}
