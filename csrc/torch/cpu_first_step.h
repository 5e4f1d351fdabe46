// The first step of a direction that begins from a state of zeros, as calls without one do. The product of that state with
// W_hh is zero, and so is what the step gives to the gradient of W_hh: neither is made. But NaN and infinity times zero is
// NaN, and stays it: where the other factor has these, all is multiplied.
#pragma once
#include <atomic>
#include <cmath>
#include <cstring>

#include "cpu_layer.h"
#include "cpu_sums.h"

namespace fused_rnn {

// To look through W_hh is to read it once, as the product of few rows does too.
constexpr int64_t kRowsWorthLooking = 16;

inline int64_t rows_of_first_step(const Layer& l, int64_t d) { return l.seq.rows(d == 1 ? l.T - 1 : 0); }

// Whether all bits are 0.
inline bool all_zero(const Tensor& t) {
    const Tensor laid = laid_out(t);
    const char* bytes = static_cast<const char*>(laid.const_data_ptr());
    const int64_t count = laid.numel() * static_cast<int64_t>(laid.element_size());
    return count == 0 || (bytes[0] == 0 && std::memcmp(bytes, bytes + 1, static_cast<size_t>(count - 1)) == 0);
}

// Whether direction d, from a state of zeros, can do without its first product with W_hh: told from the product with one
// row of zeros.
template <class F, class S>
bool starts_without_product(const cpu::Pool& pool, const cpu::Kernels<F, S>& k, const Layer& l, int64_t d) {
    if (rows_of_first_step(l, d) < kRowsWorthLooking) return false;
    const Tensor& w = *l.weights[d].w_hh;
    Buffer<F> row(w.size(1)), product(w.size(0));
    row.zero();
    Weight<F, S>(pool, k, w).dot(row.data(), row.count(), 1, product.data(), product.count(), false);
    return std::all_of(product.data(), product.data() + product.count(), [](F sum) { return sum == 0; });
}

// The rows of a piece of one direction that give anything to the gradient of W_hh.
template <class F, class S>
class RecurrentRows {
  public:
    RecurrentRows() = default;
    // `zero`: the state before the first step.
    RecurrentRows(const Layer& l, int64_t d, bool zero) : first_(rows_of_first_step(l, d)), reverse_(d == 1) {
        if (zero && first_ >= kRowsWorthLooking) sums_ = Buffer<F>(l.G * l.H);
    }

    // In steps [t0, t1) of T, with dg of them. Infinite sums of finite numbers are taken for what they look like.
    RowRange operator()(const cpu::Crew& crew, const cpu::Kernels<F, S>& k, const Layer& l, int64_t t0, int64_t t1,
                        Matrix<const F> dg) {
        const RowRange all{0, dg.rows};
        if (!sums_ || (reverse_ ? t1 < l.T : t0 > 0)) return all;
        const RowRange first = reverse_ ? RowRange{dg.rows - first_, dg.rows} : RowRange{0, first_};
        by_columns(crew, dg.columns, first_, [&](int64_t from, int64_t count) {
            F* const sums = sums_.data() + from;
            std::fill_n(sums, count, F(0));
            k.add_column_sums(dg.part(first).data + from, dg.row, first_, count, sums);
            if (!std::all_of(sums, sums + count, [](F sum) { return std::isfinite(sum); })) finite_ = false;
        });
        crew.wait();
        if (!finite_) return all;
        return reverse_ ? RowRange{0, first.from} : RowRange{first.end / cpu::kTileDepth * cpu::kTileDepth, dg.rows};
    }

  private:
    int64_t first_ = 0;
    bool reverse_ = false;
    Buffer<F> sums_;
    std::atomic<bool> finite_ = true;
};

}  // namespace fused_rnn
