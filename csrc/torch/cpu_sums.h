// Gradients that are sums over rows: those of biases and of peepholes.
#pragma once
#include "cpu_layer.h"

namespace fused_rnn {

// f(from, count) for parts of so many columns: whole vectors, so that the bits do not depend on the number of threads.
template <class Function>
void by_columns(const cpu::Crew& crew, int64_t columns, int64_t rows, const Function& f) {
    const int64_t blocks = (columns + cpu::kPad - 1) / cpu::kPad;
    crew.share(blocks, rows * columns >> 15, [&](int64_t c0, int64_t c1) {
        const int64_t from = c0 * cpu::kPad, end = std::min(c1 * cpu::kPad, columns);
        f(from, end - from);
    });
}

// result (+)= the sum of all rows of dg
template <class F, class S>
void column_sums(const cpu::Crew& crew, const cpu::Kernels<F, S>& k, Matrix<const F> dg, F* result, bool accumulate) {
    by_columns(crew, dg.columns, dg.rows, [&](int64_t from, int64_t count) {
        if (!accumulate) std::fill_n(result + from, count, F(0));
        k.add_column_sums(dg.data + from, dg.row, dg.rows, count, result + from);
    });
}

// result (+)= the sums of d_i c (unless coupled), d_f c and d_o c', for c before and c' after the step of each row of dg,
// [rows, G*H]
template <class F, class S>
void peephole_gradient(const cpu::Crew& crew, const cpu::Kernels<F, S>& k, Matrix<const F> dg, Matrix<const F> before,
                       Matrix<const F> after, Result<F, S>& result, bool accumulate) {
    const int64_t H = before.columns;
    const auto add = [&](int64_t from, int64_t count, int64_t gate, Matrix<const F> c, int64_t weight) {
        if (!accumulate) std::fill_n(result.data() + weight * H + from, count, F(0));
        k.add_column_products(dg.data + gate * H + from, dg.row, c.data + from, c.row, dg.rows, count,
                              result.data() + weight * H + from);
    };
    const int64_t o = dg.columns / H - 1;
    by_columns(crew, H, dg.rows, [&](int64_t from, int64_t count) {
        for (int64_t gate = 0; gate < o - 1; ++gate) add(from, count, gate, before, gate);
        add(from, count, o, after, o - 1);
    });
}

}  // namespace fused_rnn
