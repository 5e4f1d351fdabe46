// The table of kernels that each instruction set exports, and the layout of packed weights.
// Everything here is plain baseline code: it is included before any target region opens.
#pragma once
#include <cstdint>

#include "loop_args.h"

namespace fused_rnn::cpu {

constexpr int kMaxVectors = 4;         // SIMD vectors in a panel
constexpr int64_t kL2Bytes = 5 << 18;  // of an L2 of 2 MB, what weights may fill beside what else is used
// Rows of internal buffers are padded to this many elements, so that whole vectors may be stored.
constexpr int64_t kPad = 16;
constexpr int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

// How the columns of a matrix lie in panels. Gated (forward W_hh of LSTM and GRU): a panel is one
// block of W units, a vector per gate. Plain: a panel is up to kMaxVectors blocks of W columns; the
// last one holds only as many as there are.
struct PanelShape {
    int64_t columns;  // units or plain columns
    int gates;        // 1: plain
    int W;
    int64_t blocks() const { return (columns + W - 1) / W; }
    int64_t count() const { return gates > 1 ? blocks() : (blocks() + kMaxVectors - 1) / kMaxVectors; }
    int vectors(int64_t p) const {
        if (gates > 1) return gates;
        const int64_t left = blocks() - p * kMaxVectors;
        return left < kMaxVectors ? static_cast<int>(left) : kMaxVectors;
    }
    int64_t first_column(int64_t p) const { return p * W * (gates > 1 ? 1 : kMaxVectors); }
    // Where panel p begins, in elements, for K rows.
    int64_t offset(int64_t p, int64_t K) const { return p * W * (gates > 1 ? gates : kMaxVectors) * K; }
};

// Products of a few rows `a` with a row-major matrix `w`, see gemm-inl.h.
template <class F, class S>
using RowsProduct = void (*)(const F* a, int64_t lda, int64_t M, const S* w, int64_t ldw, int64_t N, int64_t K, F* c,
                             int64_t ldc, bool accumulate);
template <class F, class S>
using Pack = void (*)(const S* w, int64_t ld, int64_t K, PanelShape shape, int64_t p0, int64_t p1, F* out);

// c [M, columns] (+)= a [M, K] times panels [p0, p1). Nothing is written past the last column.
template <class From, class Panel, class F>
using MultiplyPanels = void (*)(const From* a, int64_t lda, int64_t M, const Panel* panels, PanelShape shape, int64_t K,
                                int64_t p0, int64_t p1, F* c, int64_t ldc, bool accumulate);

// F computes, S stores.
template <class F, class S>
struct Kernels {
    int W;  // lanes of F in a vector
    void (*forward_loop)(const ForwardArgs<F, S>&, int64_t t0, int64_t t1, const Slice&);
    void (*backward_loop)(const BackwardArgs<F, S>&, int64_t t0, int64_t t1, const Slice&);
    void (*forward_rows)(const ForwardArgs<F, S>&, int64_t t, int64_t b0, int64_t b1, int64_t u0, int64_t u1,
                         const F* hg, int64_t row, int64_t gate_stride, int64_t unit_stride, int next);
    void (*second_rows)(const ForwardArgs<F, S>&, int64_t t, int64_t b0, int64_t b1, int64_t first, int64_t count,
                        const F* r, int64_t row, int next, int64_t final_from);
    void (*backward_rows)(const BackwardArgs<F, S>&, int64_t t, int64_t b0, int64_t b1, int64_t u0, int64_t u1,
                          const F* dh, int64_t row, bool add_dy);
    void (*output_gradient_rows)(const BackwardArgs<F, S>&, int64_t t, int64_t b0, int64_t b1, int64_t r0, int64_t r1);
    void (*rebuild_rows)(const ForwardArgs<F, S>&, int64_t n0, int64_t n1, const F* hg);
    void (*rebuild_candidates)(const ForwardArgs<F, S>&, int64_t n0, int64_t n1, const F* products);
    void (*unprojected_rows)(const BackwardArgs<F, S>&, int64_t n0, int64_t n1, const F* cells, F* to);
    void (*candidate_rows)(const BackwardArgs<F, S>&, int64_t n0, int64_t n1, const F* c_before, int64_t ld_c, F* to);
    void (*draw_mask)(const int64_t* seeds, double p, int64_t rows, int64_t columns, F* mask, int64_t ld);
    void (*mask_rows)(const F* from, int64_t ld_from, const F* mask, int64_t ld_mask, int64_t rows, int64_t columns,
                      F* to, int64_t ld_to, bool accumulate);
    void (*clip_rows)(const BackwardArgs<F, S>&, int64_t t, int64_t b0, int64_t b1);
    Pack<F, S> pack_transposed;
    Pack<F, S> pack_plain;
    Pack<F, F> pack_plain_wide;
    MultiplyPanels<F, F, F> multiply;
    MultiplyPanels<F, F, F> multiply_across;  // of a [K, M], transposed
    RowsProduct<F, S> dot_rows;
    RowsProduct<F, S> sum_rows;
    RowsProduct<F, F> outer_rows;
    void (*outer_rows_to_stored)(const F* a, int64_t lda, int64_t M, const F* x, int64_t ldx, int64_t N, int64_t K,
                                 S* c, int64_t ldc, bool accumulate);
    void (*copy_in)(const S* from, int64_t ld_from, int64_t rows, int64_t columns, F* to, int64_t ld_to);
    void (*copy_out)(const F* from, int64_t ld_from, int64_t rows, int64_t columns, S* to, int64_t ld_to);
    void (*add_column_sums)(const F* a, int64_t lda, int64_t rows, int64_t columns, F* sums);
    void (*add_column_products)(const F* a, int64_t lda, const F* b, int64_t ldb, int64_t rows, int64_t columns,
                                F* sums);
    // Hooks for tests: the vector activations over n values.
    void (*sigmoid)(const F* x, F* y, int64_t n);
    void (*tanh)(const F* x, F* y, int64_t n);
};

// Products through matrix tiles, where the CPU has them: bf16 factors, f32 sums, in tiles of kTileDepth of the summed
// dimension, filled up with zeros. An element of a factor is kTileParts bf16: bf16 as it is; f32 split in two, a high
// part and what that is off by, of which all products but that of two low parts are summed. In the loops only the
// products differ.
constexpr int64_t kTileDepth = 32;
template <class S>
constexpr int kTileParts = 1;
template <>
inline constexpr int kTileParts<float> = 2;
constexpr int64_t tiles_deep(int64_t K) { return (K + kTileDepth - 1) / kTileDepth; }
// How many bf16 K elements of a factor are.
template <class S>
constexpr int64_t whole_tiles(int64_t K) {
    return tiles_deep(K) * kTileDepth * kTileParts<S>;
}
// The same for a row of a left factor: a cache line more, lest all rows of a tile share one set of the cache.
template <class S>
constexpr int64_t tile_row(int64_t K) {
    return whole_tiles<S>(K) + kTileDepth;
}

template <class From>
using PackTiles = void (*)(const From* w, int64_t ld, int64_t K, PanelShape shape, int64_t p0, int64_t p1, bf16* out);
template <class From, class F>
using MultiplyTiles = MultiplyPanels<From, bf16, F>;

// For factors stored in S, or `wide`: in F, but taken as if in S.
template <class F, class S>
struct TileKernels {
    decltype(Kernels<F, S>::forward_loop) forward_loop;
    decltype(Kernels<F, S>::backward_loop) backward_loop;
    PackTiles<S> pack_transposed;
    PackTiles<S> pack_plain;
    PackTiles<F> pack_plain_wide;
    MultiplyTiles<S, F> multiply;
    // Rows [rows, K] as a left factor, tile_row<S>(K) apart, and products with it.
    void (*narrow_rows)(const F* a, int64_t lda, int64_t rows, int64_t K, bf16* to);
    MultiplyTiles<bf16, F> multiply_narrowed;
    MultiplyTiles<bf16, S> multiply_to_stored;  // sets c
    // Another one of columns [c0, c1) of such a factor: out[c][r] = a[r][c], tile_row<S>(rows) apart. With `sums` also
    // sums[c] += the sum over r; not for split f32, where that would lose what is left of the rest.
    void (*transpose_narrowed)(const bf16* a, int64_t lda, int64_t rows, int64_t c0, int64_t c1, bf16* out, F* sums);
};

// One per instruction set; `kernels<F, S>` of dispatch.h picks.
struct IsaTable {
    const char* name;
    const Kernels<float, float>* f32;
    const Kernels<double, double>* f64;
    const Kernels<float, bf16>* bf16_;
    const Kernels<float, f16>* f16_;
    const TileKernels<float, bf16>* bf16_tiles;  // or null, both
    const TileKernels<float, float>* f32_tiles;
};
extern const IsaTable generic_table;
#if defined(__x86_64__)
extern const IsaTable avx2_table;
extern const IsaTable avx512_table;
extern const IsaTable amx_table;
#endif

// At least so many bytes that are this thread's until it asks again, 64-byte aligned. Throws std::bad_alloc. (memory.cpp)
void* thread_scratch(int64_t bytes);
// team.cpp; kept out of line so that loops hold no atomics
void barrier_wait(Barrier* barrier);
struct Progress;
void progress_wait(const Progress* of, int32_t pieces);  // until so many are done
void progress_reach(Progress* own, int32_t pieces);

}  // namespace fused_rnn::cpu
