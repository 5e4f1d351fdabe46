// Layer normalisation: its weights as the loops take them, and their gradients.
#pragma once
#include <utility>

#include "cpu_sums.h"

namespace fused_rnn {

// Gains and shifts of one direction in the compute type, one after the other.
template <class F, class S>
class NormWeights {
  public:
    NormWeights() = default;
    NormWeights(const cpu::Kernels<F, S>& k, int64_t GH, int64_t H, const S* x, const S* h, const S* c,
                const S* c_shift)
        : buffer_(2 * (GH + H)) {
        F* to = buffer_.data();
        const auto take = [&](const S* from, int64_t count) -> const F* {
            if (!from) return nullptr;
            k.copy_in(from, count, 1, count, to, count);
            return std::exchange(to, to + count);
        };
        args_ = {take(x, GH), take(h, GH), take(c, H), take(c_shift, H)};
    }
    NormWeights(const cpu::Kernels<F, S>& k, const Layer& l, const DirectionWeights& w) {
        if (!l.variant.layer_norm) return;
        std::optional<Tensor> kept[4];  // until they are copied
        const auto data = [&](int i, const Tensor* t) {
            return t ? data_of<S>(kept[i].emplace(laid_out(*t))) : nullptr;
        };
        *this =
            NormWeights(k, l.G * l.H, l.H, data(0, w.ln_x), data(1, w.ln_h), data(2, w.ln_c), data(3, w.ln_c_shift));
    }
    const cpu::Norm<F>& args() const { return args_; }

  private:
    Buffer<F> buffer_;
    cpu::Norm<F> args_{};
};

// Adds to the gradients of one direction what a piece of time has left in `norm_sums`, a row for each of the batch, and clears
// that. `result`: the direction's.
template <class F, class S>
void norm_gradients(const cpu::Crew& crew, const cpu::Kernels<F, S>& k, const Layer& l,
                    const cpu::BackwardArgs<F, S>& a, Result<F, S>* result, bool accumulate) {
    const int64_t GH = l.G * l.H, ld = cpu::norm_sums_of(l.cell, l.variant, l.H);
    const cpu::NormSums<F> first(a, 0);
    // What several weights have in common is given to the first of them that is asked for.
    const auto take = [&](F* sums, int64_t count, std::initializer_list<Result<F, S>*> weights) {
        Result<F, S>* to = nullptr;
        for (Result<F, S>* weight : weights)
            if (!to && *weight) to = weight;
        by_columns(crew, count, l.B, [&](int64_t from, int64_t columns) {
            if (to) {
                if (!accumulate) std::fill_n(to->data() + from, columns, F(0));
                k.add_column_sums(sums + from, ld, l.B, columns, to->data() + from);
            }
            for (int64_t b = 0; b < l.B; ++b) std::fill_n(sums + b * ld + from, columns, F(0));
        });
    };
    if (l.biased && biases_apart(l.cell, l.variant)) {
        take(first.shift_x, GH, {&result[2]});
        take(first.shift_h, GH, {&result[3]});
    } else if (l.biased) {
        take(first.shift_x, GH, {&result[2], &result[3]});
    }
    take(first.gain_x, GH, {&result[l.at_norm]});
    take(first.gain_h, GH, {&result[l.at_norm + 1]});
    if (!is_lstm(l.cell)) return;
    take(first.gain_c, l.H, {&result[l.at_norm + 2]});
    take(first.shift_c, l.H, {&result[l.at_norm + 3]});
    if (l.variant.peephole) take(first.w_ch, (l.G - 1) * l.H, {&result[l.at_w_ch]});
}

}  // namespace fused_rnn
