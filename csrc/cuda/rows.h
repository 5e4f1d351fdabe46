// What is done row by row around the loops: the steps of a packed sequence written out on the device, gates that were not
// kept, operands of products around. One block, or one warp, takes every so many-th of `rows()` steps or rows; results do not
// depend on the number of blocks. each_row() is what a kernel does for arguments of each kind.
#pragma once
#include "gates.h"
#include "row_math.h"
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

// A state of the step before, for every row of direction d: [N, R]. One warp takes a row of a step.
template <class S>
struct BeforeArgs {
    Sequence seq;
    int64_t d, D, R;
    const S* kept;  // row n of this direction at kept + n * ld
    int64_t ld;
    const S* first;  // [D, B, R]
    const bool* reset;
    bool reset_initial;
    const ComputeType<S>* mask;  // [D, B, R], of recurrent dropout, or null
    S* to;

    // Those that a packed sequence lacks among them.
    constexpr int64_t rows() const { return seq.T * seq.B; }
};

template <class Device, class S>
FUSED_RNN_DEVICE void each_row(const Device& dev, const BeforeArgs<S>& a) {
    Walk<BeforeArgs<S>> walk(a, a.d);
    each_row_of(dev, a.rows(), [&](int64_t i) {
        const int64_t b = i % a.seq.B;
        walk.at(i / a.seq.B);
        if (b >= a.seq.rows(walk.t)) return;
        const S* from = walk.starts(b) ? walk.start(a.first, b, a.R) : a.kept + walk.row_before(b) * a.ld;
        const ComputeType<S>* mask = a.mask ? a.mask + walk.state(b, a.R) : nullptr;
        S* const to = a.to + walk.row(b) * a.R;
        const auto before = [&](int64_t j) {
            S state = from ? from[j] : S{};
            if (mask) dev.narrow(masked(dev.widen(state), mask[j]), state);
            return state;
        };
        each_value<S>(dev, a.R, before, [&](int64_t j, S state) { to[j] = state; });
    });
}

// Sums of the hidden side of dg over the steps that start from the initial state, of direction d: [B, G*H]. One block takes a
// gate of a row.
template <class S>
struct SumsArgs {
    Sequence seq;
    int64_t cell, d, H, G, width;  // as the loop's
    const S* dg;                   // [N, width]
    const bool* reset;
    bool reset_initial;
    S* to;

    constexpr int64_t rows() const { return seq.B * G; }
};

template <class Device, class S>
FUSED_RNN_DEVICE void each_row(const Device& dev, const SumsArgs<S>& a) {
    using F = ComputeType<S>;
    Walk<SumsArgs<S>> walk(a, a.d);
    for (int64_t i = dev.block(); i < a.rows(); i += dev.blocks()) {
        const int64_t b = i / a.G;
        const S* const gate = a.dg + hidden_column(a.cell, a.H, i % a.G * a.H);
        for (int64_t j = dev.thread(); j < a.H; j += dev.threads()) {
            F sum = 0;
            for (int64_t step = 0; step < a.seq.T; ++step) {
                walk.at(step);
                if (b < a.seq.rows(walk.t) && walk.starts(b)) sum += dev.widen(gate[walk.row(b) * a.width + j]);
            }
            dev.narrow(sum, a.to[i * a.H + j]);
        }
    }
}

// The gates of one direction, where the forward pass kept states only.
template <class S>
struct RebuildArgs : Varied<S> {
    int64_t cell, d, N, H;
    const ComputeType<S>* gx;      // [N, G*H], x W_ih^T
    const ComputeType<S>* hidden;  // [N, G*H], h_before W_hh^T; where r comes before the product [N, 2*H]
    const S* b_ih;                 // [G*H] or null
    const S* b_hh;
    const S* c_before;            // [N, H], with peepholes
    const ComputeType<S>* of_rh;  // [N, H]: r h W_hn^T, for n once r and z are there
    S* gates;                     // [N, saved_gates_of()*H]

    int64_t rows() const { return N; }
};

template <class Act, class Device, class S>
FUSED_RNN_DEVICE void rebuild_gates(const Device& dev, const RebuildArgs<S>& a) {
    using F = ComputeType<S>;
    const Act act = act_of<Act>(a);
    const int64_t H = a.H, G = gates_of(a.cell, a.variant), of_h = gates_of_h(a.cell, a.variant);
    const int64_t width = saved_gates_of(a.cell, a.variant) * H;
    for (int64_t n = dev.block(); n < a.N; n += dev.blocks()) {
        for (int64_t j = dev.thread(); j < H; j += dev.threads()) {
            const auto biased = [&](F product, const S* bias, int g) {
                return product + (bias ? dev.widen(bias[g * H + j]) : F(0));
            };
            const auto x = [&](int g) { return biased(a.gx[n * G * H + g * H + j], a.b_ih, g); };
            const auto h = [&](int g) { return biased(a.hidden[n * of_h * H + g * H + j], a.b_hh, g); };
            const auto both = [&](int g) { return x(g) + h(g); };
            S* to = a.gates + n * width + j;
            // But for peepholes, gates look at the state before through the products alone.
            if (is_lstm(a.cell)) {
                const int none = coupled<Act>(a);
                const LstmStep<F> s = lstm_step<Act, F>(
                    none ? F(0) : both(0), both(1 - none), both(2 - none), both(3 - none),
                    a.c_before ? dev.widen(a.c_before[n * H + j]) : F(0), act, ties_of<Act, F>(dev, a, a.d, j));
                keep_lstm_gates<Act>(dev, a, s, to);
            } else if (kVaries<Act> && a.of_rh) {
                dev.narrow(act.state(x(2) + biased(a.of_rh[n * H + j], a.b_hh, 2)), to[2 * H]);
            } else if (is_gru(a.cell)) {
                const bool apart = biases_apart(a.cell, a.variant);
                const F hn = apart ? h(2) : F(0);
                const GruStep<F> s = gru_step<Act, F>(both(0), both(1), x(2), hn, F(0), act);
                dev.narrow(s.r, to[0]);
                dev.narrow(s.z, to[H]);
                if (!apart) continue;
                dev.narrow(s.n, to[2 * H]);
                dev.narrow(hn, to[3 * H]);
            } else if (!kVaries<Act> || saved_activations_of(a.cell, a.variant)) {
                dev.narrow(rnn_step<Act, F>(both(0), act), to[0]);
            }
        }
    }
}

template <class Device, class S>
FUSED_RNN_DEVICE void each_row(const Device& dev, const RebuildArgs<S>& a) {
    if (a.varies) {
        rebuild_gates<Any<ComputeType<S>>>(dev, a);
    } else {
        rebuild_gates<Standard<ComputeType<S>>>(dev, a);
    }
}

}  // namespace fused_rnn::cuda
