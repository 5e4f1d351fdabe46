// Where cells have their gates. An LSTM, and what ties them: i f g o, or without i where it is coupled. A GRU: r z n, and what is
// inside of n's product.
#pragma once
#include "cell_math.h"

namespace fused_rnn::cuda {

template <class Act, class Args>
FUSED_RNN_DEVICE bool coupled(const Args& a) {
    if constexpr (kVaries<Act>) return a.variant.coupled;
    return false;
}
// Where the block of f begins.
template <class Act, class Args>
FUSED_RNN_DEVICE int64_t of_f(const Args& a) {
    return coupled<Act>(a) ? 0 : a.H;
}

// Of unit j of direction d.
template <class Act, class F, class Device, class Args>
FUSED_RNN_DEVICE auto ties_of([[maybe_unused]] const Device& dev, [[maybe_unused]] const Args& a,
                              [[maybe_unused]] int64_t d, [[maybe_unused]] int64_t j) {
    if constexpr (kVaries<Act>) {
        const auto* w = a.w_ch[d];
        const auto weight = [&](int64_t at) { return w ? static_cast<F>(dev.widen(w[at + j])) : F(0); };
        const bool one = a.variant.coupled;
        const int64_t f = of_f<Act>(a);
        return Ties<F>{w != nullptr, one, one ? F(0) : weight(0), weight(f), weight(f + a.H)};
    } else {
        return Untied<F>{};
    }
}

template <class F>
struct LstmGates {
    F i, f, g, o;
};
// Unit 0 of a row's gates, as they lie there; a coupled i does not.
template <class Act, class Args, class S>
FUSED_RNN_DEVICE LstmGates<S> lstm_gates_at(const Args& a, const S* from) {
    const S* f = from + of_f<Act>(a);
    return {coupled<Act>(a) ? S{} : from[0], f[0], f[a.H], f[2 * a.H]};
}
template <class Act, class F, class Device, class Args, class S>
FUSED_RNN_DEVICE LstmGates<F> widen_lstm_gates(const Device& dev, const Args& a, const LstmGates<S>& from) {
    LstmGates<F> s{0, dev.widen(from.f), dev.widen(from.g), dev.widen(from.o)};
    s.i = coupled<Act>(a) ? Act::complement(s.f) : dev.widen(from.i);
    return s;
}
template <class Act, class F, class Device, class Args, class S>
FUSED_RNN_DEVICE LstmGates<F> read_lstm_gates(const Device& dev, const Args& a, const S* from) {
    return widen_lstm_gates<Act, F>(dev, a, lstm_gates_at<Act>(a, from));
}
// Of a step, or of its gradient.
template <class Act, class Device, class Args, class Gates, class S>
FUSED_RNN_DEVICE void keep_lstm_gates(const Device& dev, const Args& a, const Gates& s, S* to) {
    S* f = to + of_f<Act>(a);
    if (!coupled<Act>(a)) dev.narrow(s.i, to[0]);
    dev.narrow(s.f, f[0]);
    dev.narrow(s.g, f[a.H]);
    dev.narrow(s.o, f[2 * a.H]);
}
template <class Device, class Gates, class S>
FUSED_RNN_DEVICE void keep_gru_gates(const Device& dev, int64_t H, const Gates& s, S* to) {
    dev.narrow(s.r, to[0]);
    dev.narrow(s.z, to[H]);
    dev.narrow(s.n, to[2 * H]);
    dev.narrow(s.hn, to[3 * H]);
}

}  // namespace fused_rnn::cuda
