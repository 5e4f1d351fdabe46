// What is done row by row around the loops: the steps of a packed sequence written out on the device, gates that were not
// kept, operands of products around. One block takes every gridDim-th step (or row); results do not depend on the number of blocks.
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
    const bool* reset;
    bool reset_initial;
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
            const S* from = walk.starts(b) ? walk.start(a.h0, b, a.R) : a.h + walk.row_before(b) * a.ld;
            a.to[walk.row(b) * a.R + j] = from ? from[j] : S{};
        }
    }
}

// Sums of the hidden side of dg over the steps that start from the initial state, of direction d: [B, G*H].
template <class S>
struct SumsArgs {
    Sequence seq;
    int64_t cell, d, H;
    const S* dg;  // [N, blocks*H]
    const bool* reset;
    bool reset_initial;
    S* to;
};

template <class Device, class S>
FUSED_RNN_DEVICE void sum_starts(const Device& dev, const SumsArgs<S>& a) {
    using F = ComputeType<S>;
    Walk<SumsArgs<S>> walk(a, a.d);
    const int64_t GH = gates_of(a.cell) * a.H, width = gradient_blocks(a.cell) * a.H;
    for (int64_t b = dev.block(); b < a.seq.B; b += dev.blocks()) {
        for (int64_t k = dev.thread(); k < GH; k += dev.threads()) {
            const S* column = a.dg + hidden_column(a.cell, a.H, k);
            F sum = 0;
            for (int64_t step = 0; step < a.seq.T; ++step) {
                walk.at(step);
                if (b < a.seq.rows(walk.t) && walk.starts(b)) sum += dev.widen(column[walk.row(b) * width]);
            }
            dev.narrow(sum, a.to[b * GH + k]);
        }
    }
}

// The gates of one direction, where the forward pass kept states only.
template <class S>
struct RebuildArgs {
    int64_t cell, N, H;
    const ComputeType<S>* gx;      // [N, G*H], x W_ih^T
    const ComputeType<S>* hidden;  // [N, G*H], h_before W_hh^T
    const S* b_ih;                 // [G*H] or null
    const S* b_hh;
    S* gates;  // [N, 4*H]
};

template <class Act, class Device, class S>
FUSED_RNN_DEVICE void rebuild_gate_rows(const Device& dev, const RebuildArgs<S>& a) {
    using F = ComputeType<S>;
    const int64_t H = a.H, GH = gates_of(a.cell) * H;
    for (int64_t n = dev.block(); n < a.N; n += dev.blocks()) {
        for (int64_t j = dev.thread(); j < H; j += dev.threads()) {
            const auto side = [&](const F* products, const S* bias, int g) {
                return products[n * GH + g * H + j] + (bias ? dev.widen(bias[g * H + j]) : F(0));
            };
            const auto x = [&](int g) { return side(a.gx, a.b_ih, g); };
            const auto h = [&](int g) { return side(a.hidden, a.b_hh, g); };
            S* to = a.gates + n * 4 * H + j;
            // The gates look at the state before through the products alone.
            if (is_gru(a.cell)) {
                const F hn = h(2);
                const GruStep<F> s = gru_step<Act, F>(x(0) + h(0), x(1) + h(1), x(2), hn, F(0));
                dev.narrow(s.r, to[0]);
                dev.narrow(s.z, to[H]);
                dev.narrow(s.n, to[2 * H]);
                dev.narrow(hn, to[3 * H]);
            } else {
                const LstmStep<F> s = lstm_step<Act, F>(x(0) + h(0), x(1) + h(1), x(2) + h(2), x(3) + h(3), F(0));
                dev.narrow(s.i, to[0]);
                dev.narrow(s.f, to[H]);
                dev.narrow(s.g, to[2 * H]);
                dev.narrow(s.o, to[3 * H]);
            }
        }
    }
}

template <class Device, class S>
FUSED_RNN_DEVICE void rebuild_gates(const Device& dev, const RebuildArgs<S>& a) {
    if (a.cell == kLstmLinear || a.cell == kGruLinear) {
        rebuild_gate_rows<Linear<ComputeType<S>>>(dev, a);
    } else {
        rebuild_gate_rows<Standard<ComputeType<S>>>(dev, a);
    }
}

// o tanh(c) of one direction, the projected LSTM's h before W_hr, which is not kept: [N, H].
template <class S>
struct UnprojectedArgs {
    int64_t N, H;
    bool linear;
    Saved<const S> saved;
    S* to;
};

template <class Device, class S>
FUSED_RNN_DEVICE void unprojected_rows(const Device& dev, const UnprojectedArgs<S>& a) {
    using F = ComputeType<S>;
    for (int64_t n = dev.block(); n < a.N; n += dev.blocks()) {
        const S *o_row = a.saved.gates_of(n) + 3 * a.H, *c_row = a.saved.state_of(n);
        for (int64_t j = dev.thread(); j < a.H; j += dev.threads()) {
            const F o = dev.widen(o_row[j]), c = dev.widen(c_row[j]);
            dev.narrow(o * (a.linear ? c : Standard<F>::state(c)), a.to[n * a.H + j]);
        }
    }
}

}  // namespace fused_rnn::cuda
