// What is done row by row around the loops: the steps of a packed sequence written out on the device, the operands of
// the weight gradients. One block takes every gridDim-th step (or row); results do not depend on the number of blocks.
#pragma once
#include "walk.h"

namespace fused_rnn::cuda {

// Steps [t0, t1) of a packed sequence have `rows` rows each, the first of them beginning at `offset`.
struct Run {
    int64_t t0, t1, rows, offset;
};
// As many as fit a kernel's parameters: so they reach the device without a copy that the host would have to wait for,
// and a captured graph keeps them.
struct Runs {
    static constexpr int kCapacity = 100;
    int count;
    Run at[kCapacity];
};

template <class Device>
FUSED_RNN_DEVICE void write_steps(const Device& dev, const Runs& runs, int64_t* batch_sizes, int64_t* offsets) {
    for (int i = dev.block(); i < runs.count; i += dev.blocks()) {
        const Run& run = runs.at[i];
        for (int64_t t = run.t0 + dev.thread(); t < run.t1; t += dev.threads()) {
            batch_sizes[t] = run.rows;
            offsets[t] = run.offset + (t - run.t0) * run.rows;
        }
    }
}

// h of the step before, for every row of direction d: [N, R].
template <class S>
struct BeforeArgs {
    Sequence seq;
    int64_t d, D, N, R;
    const S* h;  // row n of this direction at h + n * ld
    int64_t ld;
    const S* h0;  // [D, B, R]
    S* to;
};

template <class Device, class S>
FUSED_RNN_DEVICE void gather_before(const Device& dev, const BeforeArgs<S>& a) {
    Walk<BeforeArgs<S>> walk(a, a.d);
    for (int64_t k = dev.block(); k < a.seq.T; k += dev.blocks()) {
        walk.at(k);
        const int64_t count = a.seq.rows(walk.t) * a.R;
        for (int64_t i = dev.thread(); i < count; i += dev.threads()) {
            const int64_t b = i / a.R, j = i % a.R;
            const S* from = walk.begins(b) ? a.h0 + walk.state(b, a.R) : a.h + walk.row_before(b) * a.ld;
            a.to[walk.row(b) * a.R + j] = from[j];
        }
    }
}

// o tanh(c) of saved rows, the projected LSTM's h before W_hr, which is not kept: [N, H].
template <class S>
struct UnprojectedArgs {
    int64_t N, H;
    bool linear;
    const S* saved;  // of one direction
    S* to;
};

template <class Device, class S>
FUSED_RNN_DEVICE void unprojected_rows(const Device& dev, const UnprojectedArgs<S>& a) {
    using F = ComputeType<S>;
    for (int64_t n = dev.block(); n < a.N; n += dev.blocks()) {
        const S* s = a.saved + n * 5 * a.H;
        for (int64_t j = dev.thread(); j < a.H; j += dev.threads()) {
            const F o = dev.widen(s[3 * a.H + j]), c = dev.widen(s[4 * a.H + j]);
            dev.narrow(o * (a.linear ? c : Standard<F>::state(c)), a.to[n * a.H + j]);
        }
    }
}

}  // namespace fused_rnn::cuda
