// Episodes that begin inside of a sequence: the states they begin from, and the gradients of these.
#pragma once
#include "cpu_layer.h"

namespace fused_rnn {

// Of one direction: h0 and c0, apart from the buffers that a loop moves on, or zero.
template <class F, class S>
class ResetState {
  public:
    ResetState() = default;
    ResetState(const cpu::Kernels<F, S>& k, const Layer& l, const LayerArgs& in, int64_t d) {
        if (!l.begins) return;
        if (l.reset_initial) {
            h_ = state_buffer(k, in.h0, d, l.B, l.R);
            if (is_lstm(l.cell)) c_ = state_buffer(k, *in.c0, d, l.B, l.H);
            args_ = {l.begins, h_.data(), cpu::padded(l.R), c_.data(), cpu::padded(l.H)};
        } else {
            h_ = Buffer<F>(std::max(l.R, l.H));
            h_.zero();
            args_ = {l.begins, h_.data(), 0, h_.data(), 0};
        }
    }
    const cpu::Reset<F>& args() const { return args_; }

  private:
    Buffer<F> h_, c_;
    cpu::Reset<F> args_{};
};

// Rows whose state is set anew before the first step that a loop walks.
template <class Args>
cpu::Marks reset_at_first(const Args& a) {
    return cpu::reset_before(a, a.seq.first(a.reverse));
}

// The state that the first step reads, made of the initial one.
template <class F, class S>
void reset_first(const cpu::ForwardArgs<F, S>& a) {
    const cpu::Marks anew = reset_at_first(a);
    for (int64_t b = 0; b < anew.count; ++b) {
        if (!anew[b]) continue;
        std::copy_n(a.reset.h + b * a.reset.ld_h, a.R, a.h[0] + b * a.ld_h);
        if (is_lstm(a.cell)) std::copy_n(a.reset.c + b * a.reset.ld_c, a.H, a.c + b * a.ld_c);
    }
}

// Makes of the gradient that leaves the first step that of the initial state: with `sums`, what episodes that begin from it
// sent there, or, where they begin from zero, without the rows of those that begin at the first step.
template <class F, class S>
void add_reset(const cpu::BackwardArgs<F, S>& a, Buffer<F>& gradient, int64_t ld, const Buffer<F>& sums) {
    F* const to = gradient.data();
    if (sums) {
        for (int64_t k = 0; k < sums.count(); ++k) to[k] += sums.data()[k];
        return;
    }
    const cpu::Marks anew = reset_at_first(a);
    for (int64_t b = 0; b < anew.count; ++b)
        if (anew[b]) std::fill_n(to + b * ld, ld, F(0));
}

}  // namespace fused_rnn
