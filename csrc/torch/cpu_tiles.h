// Products around the time loop through matrix tiles: bf16 factors, f32 sums.
#pragma once
#include "cpu_layer.h"

namespace fused_rnn {

// A product that is not sequential, its panels shared among threads: c [M, columns] (+)= a panels.
template <class F, class S>
class TileProduct {
  public:
    TileProduct() = default;
    TileProduct(const cpu::Pool& pool, const cpu::Kernels<F, S>& k, const cpu::TileKernels& tiles, const Tensor& w,
                bool transposed)
        : pool_(&pool), tiles_(&tiles), packed_(pool, k, &tiles, w, 1, transposed), K_(w.size(transposed ? 1 : 0)) {}

    template <class From>
    void operator()(const From* a, int64_t lda, int64_t M, float* c, int64_t ldc, bool accumulate) const {
        const cpu::PanelShape& shape = packed_.shape();
        // A second thread pays for itself from some ten microseconds of products on.
        const int64_t parts = M * K_ * shape.columns < (1 << 22) ? 1 : shape.count();
        pool_->split(shape.count(), parts, [&](int64_t p0, int64_t p1) {
            if constexpr (std::is_same_v<From, bf16>) {
                tiles_->multiply(a, lda, M, packed_.tiles(), shape, K_, p0, p1, c, ldc, accumulate);
            } else {
                tiles_->multiply_wide(a, lda, M, packed_.tiles(), shape, K_, p0, p1, c, ldc, accumulate);
            }
        });
    }

  private:
    const cpu::Pool* pool_ = nullptr;
    const cpu::TileKernels* tiles_ = nullptr;
    Packed<F, S> packed_;
    int64_t K_ = 0;
};

// c [columns of dg, columns of x] (+)= dg^T x over rows, for several x and one dg: dg is transposed once.
class TileGradient {
  public:
    TileGradient() = default;
    TileGradient(const cpu::Pool& pool, const cpu::TileKernels& tiles) : pool_(&pool), tiles_(&tiles) {}

    void set(const float* dg, int64_t ld, int64_t rows, int64_t columns) {
        rows_ = rows;
        columns_ = columns;
        left_ = grown(left_, columns * cpu::whole_tiles(rows));
        // Whole blocks of 16 columns a part.
        const int64_t blocks = (columns + 15) / 16;
        pool_->split(blocks, blocks, [&](int64_t from, int64_t end) {
            tiles_->narrow_transposed(dg, ld, rows, from * 16, std::min(end * 16, columns), bits(left_));
        });
    }

    void add(const float* x, int64_t ld, int64_t width, float* c, bool accumulate) {
        const cpu::PanelShape shape{width, 1, 16};
        const int64_t K = cpu::whole_tiles(rows_);
        right_ = grown(right_, K * shape.count() * cpu::kMaxVectors * 16);
        pool_->split(shape.count(), shape.count(), [&](int64_t p0, int64_t p1) {
            tiles_->pack_plain_wide(x, ld, rows_, shape, p0, p1, bits(right_));
        });
        // Shared by rows of the result: there are more of them than panels. The summed rows are whole tiles already.
        const int64_t blocks = (columns_ + 31) / 32;
        pool_->split(blocks, blocks, [&](int64_t from, int64_t end) {
            const int64_t m0 = from * 32, m1 = std::min(end * 32, columns_);
            tiles_->multiply(bits(left_) + m0 * K, K, m1 - m0, bits(right_), shape, K, 0, shape.count(), c + m0 * width,
                             width, accumulate);
        });
    }

  private:
    static Buffer<float> grown(const Buffer<float>& buffer, int64_t count) {
        return buffer.count() < tile_floats(count) ? Buffer<float>(tile_floats(count)) : buffer;
    }
    static bf16* bits(const Buffer<float>& buffer) { return reinterpret_cast<bf16*>(buffer.data()); }

    const cpu::Pool* pool_ = nullptr;
    const cpu::TileKernels* tiles_ = nullptr;
    Buffer<float> left_, right_;
    int64_t rows_ = 0, columns_ = 0;
};

}  // namespace fused_rnn
