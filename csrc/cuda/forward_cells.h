// The cells forward: what they load before the sums of a step, and do after them. ActT is what they are activated by; where
// it is Any, they are those that are not torch's, too.
//
// A step has one product, or two, or either (kOnce, kTwice). Of two the first leads to what store() returns, the operand
// of the second; that one to finish().
#pragma once
#include "forward_step.h"

namespace fused_rnn::cuda {

template <template <class> class ActT, class S>
struct LstmForward {
    static constexpr int G = 4;
    static constexpr bool kOnce = true, kTwice = true;
    using F = ComputeType<S>;
    using Act = ActT<F>;
    struct Cell {
        F x[4], c;
    };
    struct Last {};

    // Row of W_hh; a coupled i has none, and those of f, g, o come first.
    static FUSED_RNN_DEVICE const S* weight(const ForwardStep<S>& step, int g, int64_t j) {
        const int none = coupled<Act>(step.a);
        return g < none ? nullptr : step.weight(g - none, j);
    }
    template <class Device>
    static FUSED_RNN_DEVICE Cell load(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j) {
        Cell cell{};
        const int none = coupled<Act>(step.a);
        FUSED_RNN_UNROLL()
        for (int g = 0; g < 4; ++g)
            if (g >= none) cell.x[g] = step.input(dev, b, g - none, G - none, j, false);
        const int64_t at = step.state(b, step.a.H) + j;
        cell.c = step.starts(b) ? step.start(dev, step.a.c0, b, step.a.H, j) : step.a.carry[at];
        return cell;
    }
    template <class Device>
    static FUSED_RNN_DEVICE F store(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j,
                                    const Cell& cell, const F (&sums)[4]) {
        const auto kept = step.template zoneout_of_cell<Act, F>(b, j);
        const LstmStep<F> s = advance(dev, step, b, j, cell, sums, kept);
        return kept.of_h ? kept.h(step.h_before(dev, b, j), s.h) : s.h;
    }
    // All but what zoneout keeps of h.
    template <class Device, class Kept>
    static FUSED_RNN_DEVICE LstmStep<F> advance(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j,
                                                const Cell& cell, const F (&sums)[4], const Kept& kept) {
        const ForwardArgs<S>& a = step.a;
        const LstmStep<F> s =
            lstm_step<Act, F>(cell.x[0] + sums[0], cell.x[1] + sums[1], cell.x[2] + sums[2], cell.x[3] + sums[3],
                              cell.c, act_of<Act>(a), ties_of<Act, F>(dev, a, step.d, j));
        const F c = kept.c(cell.c, s.c);
        const int64_t at = step.state(b, a.H) + j;
        a.carry[at] = c;
        if (step.ends(b)) dev.narrow(c, a.cn[at]);
        const Saved<S>& saved = a.saved[step.d];
        if (saved.gates) keep_lstm_gates<Act>(dev, a, s, saved.gates_of(step.row(b)) + j);
        if (saved.states) dev.narrow(c, saved.state_of(step.row(b))[j]);
        return s;
    }

    // With a projection the product is h.
    template <class Device>
    static FUSED_RNN_DEVICE Last load_last(const Device&, const ForwardStep<S>&, int64_t, int64_t) {
        return {};
    }
    template <class Device>
    static FUSED_RNN_DEVICE F finish(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j, const Last&,
                                     F product) {
        const auto kept = step.template zoneout_of_h<Act, F>(b, j);
        return kept.of_h ? kept.h(step.h_before(dev, b, j), product) : product;
    }
};

template <template <class> class ActT, class S>
struct GruForward {
    static constexpr int G = 3;
    static constexpr bool kOnce = true, kTwice = false;
    using F = ComputeType<S>;
    using Act = ActT<F>;
    struct Cell {
        F r, z, n, hn, h;
    };

    static FUSED_RNN_DEVICE const S* weight(const ForwardStep<S>& step, int g, int64_t j) { return step.weight(g, j); }
    template <class Device>
    static FUSED_RNN_DEVICE Cell load(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j) {
        const int64_t H = step.a.H;
        const S* b_hh = step.a.b_hh[step.d];
        return {step.input(dev, b, 0, G, j, false), step.input(dev, b, 1, G, j, false),
                step.input(dev, b, 2, G, j, true), b_hh ? dev.widen(b_hh[2 * H + j]) : F(0), step.carried_h(dev, b, j)};
    }
    template <class Device>
    static FUSED_RNN_DEVICE F store(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j,
                                    const Cell& cell, const F (&sums)[3]) {
        const F hn = cell.hn + sums[2];
        const GruStep<F> s =
            gru_step<Act, F>(cell.r + sums[0], cell.z + sums[1], cell.n, hn, cell.h, act_of<Act>(step.a));
        const F h = step.template zoneout_of_cell<Act, F>(b, j).h(cell.h, s.h);
        const int64_t H = step.a.H;
        step.a.carry[step.state(b, H) + j] = h;
        const Saved<S>& saved = step.a.saved[step.d];
        if (saved.gates) {
            S* to = saved.gates_of(step.row(b)) + j;
            dev.narrow(s.r, to[0]);
            dev.narrow(s.z, to[H]);
            dev.narrow(s.n, to[2 * H]);
            dev.narrow(hn, to[3 * H]);
        }
        return h;
    }
};

// The GRU of Cho et al. 2014: W_hh gives r and z, and r h for the second product, which gives n and h'.
template <template <class> class ActT, class S>
struct GruBeforeForward {
    static constexpr int G = 2;
    static constexpr bool kOnce = false, kTwice = true;
    using F = ComputeType<S>;
    using Act = ActT<F>;
    struct Cell {
        F r, z, h;
    };
    struct Last {
        F x, z, h;
    };

    static FUSED_RNN_DEVICE const S* weight(const ForwardStep<S>& step, int g, int64_t j) { return step.weight(g, j); }
    template <class Device>
    static FUSED_RNN_DEVICE Cell load(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j) {
        return {step.input(dev, b, 0, 3, j, false), step.input(dev, b, 1, 3, j, false), step.carried_h(dev, b, j)};
    }
    template <class Device>
    static FUSED_RNN_DEVICE F store(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j,
                                    const Cell& cell, const F (&sums)[2]) {
        const Act act = act_of<Act>(step.a);
        const F r = act.gate(cell.r + sums[0]), z = act.gate(cell.z + sums[1]);
        step.a.z[step.state(b, step.a.H) + j] = z;
        const Saved<S>& saved = step.a.saved[step.d];
        if (saved.gates) {
            S* to = saved.gates_of(step.row(b)) + j;
            dev.narrow(r, to[0]);
            dev.narrow(z, to[step.a.H]);
        }
        return r * step.masked_h(b, j, cell.h);
    }

    template <class Device>
    static FUSED_RNN_DEVICE Last load_last(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j) {
        return {step.input(dev, b, 2, 3, j, false), step.a.z[step.state(b, step.a.H) + j], step.carried_h(dev, b, j)};
    }
    template <class Device>
    static FUSED_RNN_DEVICE F finish(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j,
                                     const Last& last, F product) {
        const F n = act_of<Act>(step.a).state(last.x + product);
        const F h = step.template zoneout_of_h<Act, F>(b, j).h(last.h, gru_update(last.z, n, last.h));
        step.a.carry[step.state(b, step.a.H) + j] = h;
        const Saved<S>& saved = step.a.saved[step.d];
        if (saved.gates) dev.narrow(n, saved.gates_of(step.row(b))[2 * step.a.H + j]);
        return h;
    }
};

template <template <class> class ActT, class S>
struct RnnForward {
    static constexpr int G = 1;
    static constexpr bool kOnce = true, kTwice = false;
    using F = ComputeType<S>;
    using Act = ActT<F>;
    struct Cell {
        F x;
    };

    static FUSED_RNN_DEVICE const S* weight(const ForwardStep<S>& step, int g, int64_t j) { return step.weight(g, j); }
    template <class Device>
    static FUSED_RNN_DEVICE Cell load(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j) {
        return {step.input(dev, b, 0, G, j, false)};
    }
    template <class Device>
    static FUSED_RNN_DEVICE F store(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j,
                                    const Cell& cell, const F (&sums)[1]) {
        const F fresh = rnn_step<Act, F>(cell.x + sums[0], act_of<Act>(step.a));
        const auto kept = step.template zoneout_of_cell<Act, F>(b, j);
        const F h = kept.of_h ? kept.h(step.h_before(dev, b, j), fresh) : fresh;
        const Saved<S>& saved = step.a.saved[step.d];
        if (kept.of_h && saved.gates) dev.narrow(fresh, saved.gates_of(step.row(b))[j]);
        return h;
    }
};

}  // namespace fused_rnn::cuda
