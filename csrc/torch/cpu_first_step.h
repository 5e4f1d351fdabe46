// The first step of a direction that starts from a state of zeros, as calls without one do. The product of that state with
// W_hh is zero, and so is what the step gives to the gradient of W_hh: neither is made. But NaN and infinity times zero is
// NaN, and stays it: where the other factor has these, all is multiplied.
#pragma once
#include <cmath>
#include <cstring>

#include "cpu_sums.h"

namespace fused_rnn {

// To look through W_hh is to read it once, as the product of few rows does too.
constexpr int64_t kRowsWorthLooking = 16;

// Whether all bits of direction d of h0 are 0, and its first step has so many rows.
inline bool starts_from_zeros(const Layer& l, const Tensor& h0, int64_t d) {
    if (l.seq.rows(l.seq.first(d == 1)) < kRowsWorthLooking) return false;
    const Tensor laid = laid_out(h0);
    const int64_t count = l.B * l.R * static_cast<int64_t>(laid.element_size());
    const char* bytes = static_cast<const char*>(laid.const_data_ptr()) + d * count;
    return bytes[0] == 0 && std::memcmp(bytes, bytes + 1, static_cast<size_t>(count - 1)) == 0;
}

// Whether the product of zeros with w is zero: told from that of one row.
template <class F, class S>
bool silenced_by_zeros(const cpu::Pool& pool, const cpu::Kernels<F, S>& k, const Tensor& w) {
    Buffer<F> row(w.size(1)), product(w.size(0));
    row.zero();
    Weight<F, S>(pool, k, w).dot(row.data(), row.count(), 1, product.data(), product.count(), false);
    return std::all_of(product.data(), product.data() + product.count(), [](F sum) { return sum == 0; });
}

// Of steps [t0, t1), whose gradients are dg, the rows that give anything to the gradient of W_hh. `sums`: memory for those of
// the columns of dg where the direction starts from zeros, else null; they begin at a multiple of `depth`. Infinite ones of finite
// numbers pass for infinity.
template <class F, class S>
RowRange recurrent_rows(const cpu::Crew& crew, const cpu::Kernels<F, S>& k, const cpu::BackwardArgs<F, S>& a,
                        int64_t t0, int64_t t1, Matrix<const F> dg, F* sums, int64_t depth) {
    const RowRange all{0, dg.rows};
    const int64_t t = a.seq.first(a.reverse), count = a.seq.rows(t);
    if (!sums || t < t0 || t >= t1) return all;
    const int64_t from = a.reverse ? dg.rows - count : 0;
    column_sums(crew, k, dg.part({from, from + count}), sums, false);
    crew.wait();
    if (!std::all_of(sums, sums + dg.columns, [](F sum) { return std::isfinite(sum); })) return all;
    return a.reverse ? RowRange{0, from} : RowRange{count / depth * depth, dg.rows};
}

}  // namespace fused_rnn
