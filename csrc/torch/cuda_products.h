// A time loop whose products torch makes, one at a time: where they are so large that nothing is lost by a launch for each, and
// its BLAS multiplies faster than the loops' own tiles (cuda/plan.cpp). Behind each come the step's cells (cuda/step_cells.h).
#pragma once
#include <algorithm>

#include "accelerator.h"
#include "layer.h"

namespace fused_rnn::cuda {

template <class S>
class StepProducts {
    using F = ComputeType<S>;

  public:
    StepProducts(const Layer& l, Place place, bool backward)
        : l(l), place_(place), backward_(backward), count_(l.two_products ? 2 : 1) {
        int64_t deepest = 0, widest = 0;
        for (int phase = 0; phase < count_; ++phase) {
            for (int64_t d = 0; d < l.D; ++d) {
                const Tensor w = laid_out(*(phase ? l.weights[d].w_hr : l.weights[d].w_hh));
                const Matrix<const S> rows{data_of<S>(w), w.size(0), w.size(1), w.size(1), 1};
                const Matrix<const S> right = backward ? rows : rows.transposed();
                Product& product = products_[phase][d];
                product = {w, right.tensor(place), right.rows, right.columns, {}, {}, -1};
                deepest = std::max(deepest, right.rows);
                widest = std::max(widest, right.columns);
            }
        }
        operand_ = empty_at(place, {l.D * l.B, deepest}, l.type);
        sums_ = empty_at(place, {l.D * l.B, widest}, scalar_type<F>());
    }

    // cells(made): the kernel for all rows of a step, behind what was made.
    template <class Cells>
    void run(bool needs_dh0, const Cells& cells) {
        MadeProduct<S> made{};
        made.sums = mutable_data_of<F>(*sums_);
        made.ld_sums = sums_->size(1);
        made.operand = mutable_data_of<S>(*operand_);
        made.ld_operand = operand_->size(1);
        const auto all_directions = [&](int phase, int64_t step) {
            for (int64_t d = 0; d < l.D; ++d) multiply_rows(phase, d, rows_of(step, d));
        };
        each_product(made, l.T, count_, needs_dh0, all_directions, cells);
    }

  private:
    // Views are kept while steps have the same number of rows.
    struct Product {
        std::optional<Tensor> weight, right;
        int64_t depth, columns;
        std::optional<Tensor> left, out;
        int64_t rows;  // -1: none yet
    };

    // After the last step, of dh0, all.
    int64_t rows_of(int64_t step, int64_t d) const {
        return step == l.T ? l.B : l.seq.rows((d == 1) == backward_ ? step : l.T - 1 - step);
    }
    void multiply_rows(int phase, int64_t d, int64_t rows) {
        Product& p = products_[phase][d];
        if (p.rows != rows) {
            p.left = part<S>(*operand_, d, rows, p.depth);
            p.out = part<F>(*sums_, d, rows, p.columns);
            p.rows = rows;
        }
        multiply(*p.out, *p.left, *p.right);
    }
    // The first rows and columns of direction d.
    template <class E>
    Tensor part(const Tensor& all, int64_t d, int64_t rows, int64_t columns) const {
        const int64_t row = all.size(1);
        return Matrix<E>{mutable_data_of<E>(all) + d * l.B * row, rows, columns, row, 1}.tensor(place_);
    }

    const Layer& l;
    const Place place_;
    const bool backward_;
    const int count_;  // products of a step
    Product products_[2][kMaxDirections] = {};
    std::optional<Tensor> operand_, sums_;
};

}  // namespace fused_rnn::cuda
