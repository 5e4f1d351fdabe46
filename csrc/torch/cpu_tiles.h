// Products around the time loop through matrix tiles: factors stored in S or, as sums are, in F.
#pragma once
#include "cpu_layer.h"

namespace fused_rnn {

// A product that is not sequential, its panels shared among threads: c [M, columns] (+)= a panels.
template <class F, class S>
class TileProduct {
  public:
    TileProduct() = default;
    TileProduct(const cpu::Pool& pool, const cpu::Kernels<F, S>& k, const cpu::TileKernels<F, S>& tiles,
                const Tensor& w, bool transposed)
        : pool_(&pool), tiles_(&tiles), packed_(pool, k, &tiles, w, 1, transposed), K_(w.size(transposed ? 1 : 0)) {}

    template <class From>
    void operator()(const From* a, int64_t lda, int64_t M, F* c, int64_t ldc, bool accumulate) const {
        const cpu::PanelShape& shape = packed_.shape();
        // A second thread pays for itself from some ten microseconds of products on.
        const int64_t parts = M * K_ * shape.columns < (1 << 22) ? 1 : shape.count();
        pool_->split(shape.count(), parts, [&](int64_t p0, int64_t p1) {
            if constexpr (std::is_same_v<From, S>) {
                tiles_->multiply(a, lda, M, packed_.tiles(), shape, K_, p0, p1, c, ldc, accumulate);
            } else {
                tiles_->multiply_wide(a, lda, M, packed_.tiles(), shape, K_, p0, p1, c, ldc, accumulate);
            }
        });
    }

  private:
    const cpu::Pool* pool_ = nullptr;
    const cpu::TileKernels<F, S>* tiles_ = nullptr;
    Packed<F, S> packed_;
    int64_t K_ = 0;
};

// c [columns of dg, columns of x] (+)= dg^T x over rows, for several x and one dg: dg is transposed once.
template <class F, class S>
class TileGradient {
  public:
    TileGradient() = default;
    TileGradient(const cpu::Pool& pool, const cpu::TileKernels<F, S>& tiles) : pool_(&pool), tiles_(&tiles) {}

    void set(const F* dg, int64_t ld, int64_t rows, int64_t columns) {
        rows_ = rows;
        columns_ = columns;
        grow(left_, columns * cpu::tile_row<S>(rows));
        // Whole blocks of 16 columns a part.
        const int64_t blocks = (columns + 15) / 16;
        pool_->split(blocks, blocks, [&](int64_t from, int64_t end) {
            tiles_->narrow_transposed(dg, ld, rows, from * 16, std::min(end * 16, columns), as_tiles(left_));
        });
    }

    void add(const F* x, int64_t ld, int64_t width, F* c, bool accumulate) {
        const cpu::PanelShape shape{width, 1, 16};
        const int64_t row = cpu::tile_row<S>(rows_);
        grow(right_, cpu::whole_tiles<S>(rows_) * shape.count() * cpu::kMaxVectors * 16);
        pool_->split(shape.count(), shape.count(), [&](int64_t p0, int64_t p1) {
            tiles_->pack_plain_wide(x, ld, rows_, shape, p0, p1, as_tiles(right_));
        });
        // Shared by rows of the result: there are more of them than panels.
        const int64_t blocks = (columns_ + 31) / 32;
        pool_->split(blocks, blocks, [&](int64_t from, int64_t end) {
            const int64_t m0 = from * 32, m1 = std::min(end * 32, columns_);
            tiles_->multiply_narrowed(as_tiles(left_) + m0 * row, row, m1 - m0, as_tiles(right_), shape, rows_, 0,
                                      shape.count(), c + m0 * width, width, accumulate);
        });
    }

  private:
    static void grow(Buffer<F>& buffer, int64_t count) {
        if (buffer.count() * static_cast<int64_t>(sizeof(F) / sizeof(bf16)) < count) buffer = tile_buffer<F>(count);
    }

    const cpu::Pool* pool_ = nullptr;
    const cpu::TileKernels<F, S>* tiles_ = nullptr;
    Buffer<F> left_, right_;
    int64_t rows_ = 0, columns_ = 0;
};

}  // namespace fused_rnn
