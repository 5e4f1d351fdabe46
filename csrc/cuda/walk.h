// One direction's way through time: which step comes when, which rows it has, where they lie.
#pragma once
#include "cell_math.h"

namespace fused_rnn::cuda {

// "Before" and "after" are in the order in which the forward pass walks: a reverse direction walks from the last step.
template <class Args>
struct Walk {
    const Args& a;
    const int64_t d;
    int64_t t = 0, before = 0, after = 0;

    FUSED_RNN_DEVICE Walk(const Args& args, int64_t direction) : a(args), d(direction) {}

    // The k-th step of the forward pass.
    FUSED_RNN_DEVICE void at(int64_t k) {
        t = d ? a.seq.T - 1 - k : k;
        before = d ? t + 1 : t - 1;
        after = d ? t - 1 : t + 1;
    }
    // Whether row b of the batch takes its first step, or its last, at t.
    FUSED_RNN_DEVICE bool begins(int64_t b) const { return b >= a.seq.rows(before); }
    FUSED_RNN_DEVICE bool ends(int64_t b) const { return b >= a.seq.rows(after); }

    // Row of the whole sequence.
    FUSED_RNN_DEVICE int64_t row(int64_t b) const { return a.seq.row(t) + b; }
    FUSED_RNN_DEVICE int64_t row_before(int64_t b) const { return a.seq.row(before) + b; }
    FUSED_RNN_DEVICE int64_t row_after(int64_t b) const { return a.seq.row(after) + b; }

    // Where they begin in tensors [D, B, size] and [N, D*R].
    FUSED_RNN_DEVICE int64_t state(int64_t b, int64_t size) const { return (d * a.seq.B + b) * size; }
    FUSED_RNN_DEVICE int64_t output(int64_t n) const { return (n * a.D + d) * a.R; }
};

}  // namespace fused_rnn::cuda
