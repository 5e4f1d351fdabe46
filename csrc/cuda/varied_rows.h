// More of rows.h: what is kept of no step, but is a factor of a product around the loops; masks.
#pragma once
#include "row_math.h"
#include "rows.h"

namespace fused_rnn::cuda {

// By which h is multiplied on its way to W_hh, for the whole of a call: [D, B, R].
template <class S>
struct MaskArgs {
    int64_t count, R;      // D*B
    const int64_t* seeds;  // [D, B]
    double dropped;        // probability
    ComputeType<S>* to;

    int64_t rows() const { return count; }
};

template <class Device, class S>
FUSED_RNN_DEVICE void each_row(const Device& dev, const MaskArgs<S>& a) {
    using F = ComputeType<S>;
    const F kept = F(1 / (1 - a.dropped));
    for (int64_t row = dev.block(); row < a.count; row += dev.blocks()) {
        for (int64_t j = dev.thread(); j < a.R; j += dev.threads()) {
            const RandomWords<uint32_t> words = random_words(a.seeds[row], Draw::kRecurrentDropout, 0, j);
            a.to[row * a.R + j] = happens(words.x[0], a.dropped) ? F(0) : kept;
        }
    }
}

// to = from times the mask, all [count, R].
template <class S>
struct MaskedArgs {
    int64_t count, R;
    const S* from;
    const ComputeType<S>* mask;
    S* to;

    int64_t rows() const { return count; }
};

template <class Device, class S>
FUSED_RNN_DEVICE void each_row(const Device& dev, const MaskedArgs<S>& a) {
    for (int64_t row = dev.block(); row < a.count; row += dev.blocks()) {
        for (int64_t j = dev.thread(); j < a.R; j += dev.threads()) {
            const int64_t at = row * a.R + j;
            dev.narrow(masked(dev.widen(a.from[at]), a.mask[at]), a.to[at]);
        }
    }
}

// r h of one direction, of a GRU whose reset gate comes before the product: [N, H].
template <class S>
struct ResetArgs {
    int64_t N, H;
    Saved<const S> saved;
    const S* h_before;  // [N, H], as W_hn sees it
    S* to;

    int64_t rows() const { return N; }
};

template <class Device, class S>
FUSED_RNN_DEVICE void each_row(const Device& dev, const ResetArgs<S>& a) {
    for (int64_t n = dev.block(); n < a.N; n += dev.blocks()) {
        const S* r = a.saved.gates_of(n);
        for (int64_t j = dev.thread(); j < a.H; j += dev.threads())
            dev.narrow(dev.widen(r[j]) * dev.widen(a.h_before[n * a.H + j]), a.to[n * a.H + j]);
    }
}

// c of an LSTM's row as its output gate saw it, which zoneout may have thrown away.
template <class Act, class Device, class Args>
FUSED_RNN_DEVICE auto shown_cell(const Device& dev, const Args& a, int64_t n, int64_t j) {
    if (!kVaries<Act> || a.variant.zoneout_c == 0) return dev.widen(a.saved.state_of(n)[j]);
    using F = decltype(dev.widen(a.c_before[0]));
    const LstmGates<F> s = read_lstm_gates<Act, F>(dev, a, a.saved.gates_of(n) + j);
    return s.f * dev.widen(a.c_before[n * a.H + j]) + s.i * s.g;
}

// o tanh(c) of one direction, the projected LSTM's h before W_hr: [N, H].
template <class S>
struct UnprojectedArgs : Varied<S> {
    int64_t N, H;
    Saved<const S> saved;
    const S* c_before;  // [N, H], with zoneout of c
    const S* gain;      // [H], with layer normalisation
    const S* shift;     // [H]
    S* to;

    int64_t rows() const { return N; }
};

template <class Act, class Device, class S>
FUSED_RNN_DEVICE void unproject(const Device& dev, const UnprojectedArgs<S>& a) {
    const Act act = act_of<Act>(a);
    for (int64_t n = dev.block(); n < a.N; n += dev.blocks()) {
        const S* o = a.saved.gates_of(n) + of_f<Act>(a) + 2 * a.H;
        for (int64_t j = dev.thread(); j < a.H; j += dev.threads())
            dev.narrow(dev.widen(o[j]) * act.state(shown_cell<Act>(dev, a, n, j)), a.to[n * a.H + j]);
    }
}
template <class Device, class S>
FUSED_RNN_DEVICE void unproject_normed(const Device& dev, const UnprojectedArgs<S>& a) {
    using F = ComputeType<S>;
    using Act = Any<F>;
    const Act act = act_of<Act>(a);
    each_row_of(dev, a.N, [&](int64_t n) {
        const S* o = a.saved.gates_of(n) + of_f<Act>(a) + 2 * a.H;
        const auto c = [&](int64_t j) { return shown_cell<Act>(dev, a, n, j); };
        const auto moments = moments_of<F>(dev, a.H, c);
        each_unit(dev, a.H, [&](int64_t j) {
            const F normed = moments.normal(c(j)) * dev.widen(a.gain[j]) + dev.widen(a.shift[j]);
            dev.narrow(dev.widen(o[j]) * act.state(normed), a.to[n * a.H + j]);
        });
    });
}
template <class Device, class S>
FUSED_RNN_DEVICE void each_row(const Device& dev, const UnprojectedArgs<S>& a) {
    if (a.gain) {
        unproject_normed(dev, a);
    } else if (a.varies) {
        unproject<Any<ComputeType<S>>>(dev, a);
    } else {
        unproject<Standard<ComputeType<S>>>(dev, a);
    }
}

// Of every row of one direction the products whose sums are the gradient of w_ch: [N, (G-1)*H].
template <class S>
struct PeepholeArgs : Varied<S> {
    int64_t N, H;
    const S* dg;  // [N, G*H]
    Saved<const S> saved;
    const S* c_before;  // [N, H]
    ComputeType<S>* to;

    int64_t rows() const { return N; }
};

template <class Device, class S>
FUSED_RNN_DEVICE void each_row(const Device& dev, const PeepholeArgs<S>& a) {
    using Act = Any<ComputeType<S>>;
    const int64_t H = a.H, last = a.variant.coupled ? 1 : 2;  // of w_ch, which belongs to the last of G gates
    for (int64_t n = dev.block(); n < a.N; n += dev.blocks()) {
        const S* dg = a.dg + n * (last + 2) * H;
        ComputeType<S>* const to = a.to + n * (last + 1) * H;
        for (int64_t j = dev.thread(); j < H; j += dev.threads()) {
            for (int64_t k = 0; k < last; ++k)
                to[k * H + j] = dev.widen(dg[k * H + j]) * dev.widen(a.c_before[n * H + j]);
            to[last * H + j] = dev.widen(dg[(last + 1) * H + j]) * shown_cell<Act>(dev, a, n, j);
        }
    }
}

}  // namespace fused_rnn::cuda
