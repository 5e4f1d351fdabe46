// Products of whole pieces of time, around the time loop, by a crew: through matrix tiles, by our own panels inside of the
// loop's threads, or, for weights past a core's cache, by torch's BLAS, which blocks these better and calls up threads of
// its own.
#pragma once
#include "cpu_layer.h"

namespace fused_rnn {

enum class By { kTiles, kPanels, kBlas };

template <class F, class S>
void multiply_tiles(const cpu::TileKernels<F, S>& tiles, const bf16* a, int64_t lda, int64_t M, const bf16* panels,
                    const cpu::PanelShape& shape, int64_t K, int64_t p0, int64_t p1, Target<F, S> to, int64_t ldc,
                    bool accumulate) {
    if (to.stored) return tiles.multiply_to_stored(a, lda, M, panels, shape, K, p0, p1, to.stored, ldc, false);
    tiles.multiply_narrowed(a, lda, M, panels, shape, K, p0, p1, to.sums, ldc, accumulate);
}

// Rows of a piece as matrix tiles take a left factor: once, for all products that they are in. Empty where products are
// made otherwise.
template <class F, class S>
class LeftFactor {
  public:
    LeftFactor() = default;
    // Of up to so many rows.
    LeftFactor(const cpu::TileKernels<F, S>* tiles, int64_t rows, int64_t columns)
        : tiles_(tiles), row_(cpu::tile_row<S>(columns)), buffer_(tiles ? tile_buffer<F>(rows * row_) : Buffer<F>()) {}

    bf16* data() const { return as_tiles(buffer_); }
    int64_t row() const { return row_; }

    void take(const cpu::Crew& crew, Matrix<const F> from) const {
        if (!tiles_) return;
        crew.split(from.rows, from.rows * from.columns >> 14, [&](int64_t begin, int64_t end) {
            tiles_->narrow_rows(from.data + begin * from.row, from.row, end - begin, from.columns,
                                data() + begin * row_);
        });
    }

  private:
    const cpu::TileKernels<F, S>* tiles_ = nullptr;
    int64_t row_ = 0;
    Buffer<F> buffer_;
};

// A weight matrix as right factor. `transposed`: c [M, rows of w] (+)= a w^T, else c [M, columns of w] (+)= a w.
template <class F, class S>
class Product {
  public:
    Product() = default;
    Product(By by, const cpu::Pool& pool, const cpu::Kernels<F, S>& k, const cpu::TileKernels<F, S>* tiles,
            const Tensor& w, bool transposed)
        : by_(by), k_(&k), tiles_(tiles), transposed_(transposed), K_(w.size(transposed ? 1 : 0)) {
        if (by == By::kBlas) {
            weight_ = Weight<F, S>(pool, k, w);
        } else {
            packed_ = Packed<F, S>(pool, k, by == By::kTiles ? tiles : nullptr, w, 1, transposed);
        }
    }

    // `taken`: the same rows. Each thread leaves its part of c; others may read it after crew.wait().
    void operator()(const cpu::Crew& crew, Matrix<const F> a, const LeftFactor<F, S>& taken, Target<F, S> to,
                    int64_t ldc, bool accumulate) {
        F* const c = to.sums;
        const int64_t M = a.rows;
        if (by_ == By::kBlas)
            return transposed_ ? weight_.dot(a.data, a.row, M, c, ldc, accumulate)
                               : weight_.sum(a.data, a.row, M, c, ldc, accumulate);
        const cpu::PanelShape& shape = packed_.shape();
        // A second thread pays for itself from some ten microseconds of products on.
        const bool small = M * K_ * shape.columns < (1 << (by_ == By::kTiles ? 22 : 20));
        if (by_ == By::kTiles) {
            crew.share(shape.count(), small ? 1 : shape.count(), [&](int64_t p0, int64_t p1) {
                multiply_tiles(*tiles_, taken.data(), taken.row(), M, packed_.tiles(), shape, K_, p0, p1, to, ldc,
                               accumulate);
            });
        } else {
            const int64_t blocks = (M + kRowsAPart - 1) / kRowsAPart;
            crew.share(blocks, small ? 1 : blocks, [&](int64_t from, int64_t end) {
                const int64_t m0 = from * kRowsAPart, m1 = std::min(end * kRowsAPart, M);
                k_->multiply(a.data + m0 * a.row, a.row, m1 - m0, packed_.data(), shape, K_, 0, shape.count(),
                             c + m0 * ldc, ldc, accumulate);
            });
        }
    }

  private:
    static constexpr int64_t kRowsAPart = 24;  // whole register tiles of whatever width

    By by_ = By::kBlas;
    const cpu::Kernels<F, S>* k_ = nullptr;
    const cpu::TileKernels<F, S>* tiles_ = nullptr;
    bool transposed_ = false;
    int64_t K_ = 0;
    Packed<F, S> packed_;
    Weight<F, S> weight_;
};

// result [columns of dg, columns of x] (+)= dg^T x over the rows of a piece.
template <class F, class S>
class OuterProduct {
  public:
    OuterProduct() = default;
    // For pieces of up to so many rows; dg and x as wide as this.
    OuterProduct(By by, const cpu::Kernels<F, S>& k, const cpu::TileKernels<F, S>* tiles, int64_t rows,
                 int64_t dg_columns, int64_t x_columns)
        : by_(by), k_(&k), tiles_(tiles) {
        const int64_t panels = cpu::PanelShape{x_columns, 1, k.W}.count() * cpu::kMaxVectors * k.W;
        if (by == By::kTiles) {
            left_ = tile_buffer<F>(dg_columns * cpu::tile_row<S>(rows));
            right_ = tile_buffer<F>(cpu::whole_tiles<S>(rows) * panels);
        } else if (by == By::kPanels) {
            right_ = Buffer<F>(rows * panels);
        }
    }

    // Gets dg ready, the first columns of `taken`, once for several x. Where that comes by the way, it also sets `sums` to
    // the sum of the rows, or adds that (of bf16 as the products take it); else it returns them, to be made otherwise.
    F* prepare(const cpu::Crew& crew, Matrix<const F> dg, const LeftFactor<F, S>& taken, F* sums = nullptr,
               bool accumulate = false) {
        if (by_ != By::kTiles || dg.rows <= kFewRows) return sums;
        F* const own = std::is_same_v<F, S> ? nullptr : sums;
        const int64_t blocks = (dg.columns + 15) / 16;
        crew.split(blocks, blocks, [&](int64_t from, int64_t end) {
            const int64_t c0 = from * 16, c1 = std::min(end * 16, dg.columns);
            if (own && !accumulate) std::fill(own + c0, own + c1, F(0));
            tiles_->transpose_narrowed(taken.data(), taken.row(), dg.rows, c0, c1, as_tiles(left_), own);
        });
        return own ? nullptr : sums;
    }

    // Of some rows of both, from a multiple of depth() on. What a thread did is there for all when it returns.
    void add(const cpu::Crew& crew, Matrix<const F> dg, Matrix<const F> x, RowRange rows, Target<F, S> to,
             bool accumulate) {
        const int64_t columns = x.columns;
        const Matrix<const F> left = dg.part(rows);
        x = x.part(rows);
        if (dg.rows <= kFewRows) {
            return crew.split(dg.columns, dg.columns * columns < (1 << 16) ? 1 : 1 << 10, [&](int64_t n0, int64_t n1) {
                const auto multiply = [&](const auto& outer, auto* out) {
                    outer(left.data + n0, left.row, left.rows, x.data, x.row, n1 - n0, columns, out + n0 * columns,
                          columns, accumulate);
                };
                return to.stored ? multiply(k_->outer_rows_to_stored, to.stored) : multiply(k_->outer_rows, to.sums);
            });
        }
        if (by_ == By::kBlas)
            return multiply<F>({to.sums, dg.columns, columns, columns, 1}, left.transposed(), x, accumulate);
        const cpu::PanelShape shape{columns, 1, k_->W};
        crew.split(shape.count(), shape.count(), [&](int64_t p0, int64_t p1) {
            if (by_ == By::kTiles) {
                tiles_->pack_plain_wide(x.data, x.row, x.rows, shape, p0, p1, as_tiles(right_));
            } else {
                k_->pack_plain_wide(x.data, x.row, x.rows, shape, p0, p1, right_.data());
            }
        });
        add_packed(crew, dg, rows, shape, to, accumulate);
    }
    // The same of all rows, for x as it is stored, through matrix tiles.
    void add_stored(const cpu::Crew& crew, Matrix<const F> dg, Matrix<const S> x, Target<F, S> to, bool accumulate) {
        const cpu::PanelShape shape{x.columns, 1, k_->W};
        crew.split(shape.count(), shape.count(), [&](int64_t p0, int64_t p1) {
            tiles_->pack_plain(x.data, x.row, x.rows, shape, p0, p1, as_tiles(right_));
        });
        add_packed(crew, dg, {0, dg.rows}, shape, to, accumulate);
    }
    int64_t depth() const { return by_ == By::kTiles ? cpu::kTileDepth : 1; }
    // Whether it takes so many rows as they are stored.
    bool takes_stored(int64_t rows) const { return by_ == By::kTiles && rows > kFewRows; }

  private:
    void add_packed(const cpu::Crew& crew, Matrix<const F> dg, RowRange rows, const cpu::PanelShape& shape,
                    Target<F, S> to, bool accumulate) {
        const int64_t columns = shape.columns;
        // Shared by rows of the result, which no two threads sum to; there are more of them than panels.
        const int64_t each = by_ == By::kTiles ? 32 : 16, parts = (dg.columns + each - 1) / each;
        crew.split(parts, parts, [&](int64_t from, int64_t end) {
            const int64_t m0 = from * each, m1 = std::min(end * each, dg.columns);
            if (by_ == By::kTiles) {
                const int64_t row = cpu::tile_row<S>(dg.rows);
                const bf16* left = as_tiles(left_) + m0 * row + cpu::whole_tiles<S>(rows.from);
                multiply_tiles(*tiles_, left, row, m1 - m0, as_tiles(right_), shape, rows.count(), 0, shape.count(),
                               to + m0 * columns, columns, accumulate);
            } else {
                k_->multiply_across(dg.data + rows.from * dg.row + m0, dg.row, m1 - m0, right_.data(), shape,
                                    rows.count(), 0, shape.count(), to.sums + m0 * columns, columns, accumulate);
            }
        });
    }

    By by_ = By::kBlas;
    const cpu::Kernels<F, S>* k_ = nullptr;
    const cpu::TileKernels<F, S>* tiles_ = nullptr;
    Buffer<F> left_, right_;
};

}  // namespace fused_rnn
