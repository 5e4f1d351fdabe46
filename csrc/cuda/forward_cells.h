// The cells forward: what they load before the sums of a step, and do after them. ActT is what they are activated by; where
// it is Any, they are those that are not torch's, too.
//
// A step has one product, or two, or either (kOnce, kTwice). Of two the first leads to what store() returns, the operand
// of the second; that one to finish(). Of torch's cells with one product, the parts of load() and of store() can be had apart:
//
//   biases()      a unit's, as a cell that has no more yet
//   kCarries      whether a cell carries what no product sees, from initial() on
//   make()        what a step makes, h and next() among it, and stores nothing,
//   keep()        which is stored here, but for h and what is carried
#pragma once
#include "forward_step.h"

namespace fused_rnn::cuda {

template <template <class> class ActT, class S>
struct LstmForward {
    static constexpr int G = 4;
    static constexpr bool kOnce = true, kTwice = true, kCarries = true;
    using F = ComputeType<S>;
    using Act = ActT<F>;
    struct Cell {
        F x[4], carried;
    };
    using Made = LstmStep<F>;
    struct Last {};

    // Row of W_hh; a coupled i has none, and those of f, g, o come first.
    static FUSED_RNN_DEVICE const S* weight(const ForwardStep<S>& step, int g, int64_t j) {
        const int none = coupled<Act>(step.a);
        return g < none ? nullptr : step.weight(g - none, j);
    }
    static FUSED_RNN_DEVICE const S* initial(const ForwardArgs<S>& a) { return a.c0; }
    template <class Device>
    static FUSED_RNN_DEVICE Cell biases(const Device& dev, const ForwardStep<S>& step, int64_t j) {
        Cell cell{};
        const int none = coupled<Act>(step.a);
        FUSED_RNN_UNROLL()
        for (int g = 0; g < 4; ++g)
            if (g >= none) cell.x[g] = step.bias(dev, g - none, j, false);
        return cell;
    }
    template <class Device>
    static FUSED_RNN_DEVICE Cell load(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j) {
        Cell cell = biases(dev, step, j);
        const int none = coupled<Act>(step.a);
        FUSED_RNN_UNROLL()
        for (int g = 0; g < 4; ++g)
            if (g >= none) cell.x[g] += *step.gx(step.row(b), g - none, G - none, j);
        cell.carried = step.carried(dev, initial(step.a), b, j);
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
        const LstmStep<F> s = make(dev, step, j, cell, sums);
        LstmStep<F> left = s;
        left.c = kept.c(cell.carried, s.c);
        step.a.carry[step.state(b, step.a.H) + j] = left.c;
        keep(dev, step, b, j, left);
        return s;
    }
    template <class Device>
    static FUSED_RNN_DEVICE Made make(const Device& dev, const ForwardStep<S>& step, int64_t j, const Cell& cell,
                                      const F (&sums)[4]) {
        return lstm_step<Act, F>(cell.x[0] + sums[0], cell.x[1] + sums[1], cell.x[2] + sums[2], cell.x[3] + sums[3],
                                 cell.carried, act_of<Act>(step.a), ties_of<Act, F>(dev, step.a, step.d, j));
    }
    static FUSED_RNN_DEVICE F next(const Made& s) { return s.c; }
    template <class Device>
    static FUSED_RNN_DEVICE void keep(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j,
                                      const Made& s) {
        const ForwardArgs<S>& a = step.a;
        if (step.ends(b)) dev.narrow(s.c, a.cn[step.state(b, a.H) + j]);
        const Saved<S>& saved = a.saved[step.d];
        if (saved.gates) keep_lstm_gates<Act>(dev, a, s, saved.gates_of(step.row(b)) + j);
        if (saved.states) dev.narrow(s.c, saved.state_of(step.row(b))[j]);
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
    static constexpr bool kOnce = true, kTwice = false, kCarries = true;
    using F = ComputeType<S>;
    using Act = ActT<F>;
    struct Cell {
        F x[4], carried;  // r, z, n, and what is inside of n's product
    };
    struct Made : GruStep<F> {
        F hn;
    };

    static FUSED_RNN_DEVICE const S* weight(const ForwardStep<S>& step, int g, int64_t j) { return step.weight(g, j); }
    static FUSED_RNN_DEVICE const S* initial(const ForwardArgs<S>& a) { return a.h0; }
    template <class Device>
    static FUSED_RNN_DEVICE Cell biases(const Device& dev, const ForwardStep<S>& step, int64_t j) {
        return {{step.bias(dev, 0, j, false), step.bias(dev, 1, j, false), step.bias(dev, 2, j, true),
                 step.hidden_bias(dev, 2, j)},
                0};
    }
    template <class Device>
    static FUSED_RNN_DEVICE Cell load(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j) {
        Cell cell = biases(dev, step, j);
        FUSED_RNN_UNROLL()
        for (int g = 0; g < G; ++g) cell.x[g] += *step.gx(step.row(b), g, G, j);
        cell.carried = step.carried(dev, initial(step.a), b, j);
        return cell;
    }
    template <class Device>
    static FUSED_RNN_DEVICE F store(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j,
                                    const Cell& cell, const F (&sums)[3]) {
        const Made s = make(dev, step, j, cell, sums);
        const F h = step.template zoneout_of_cell<Act, F>(b, j).h(cell.carried, s.h);
        step.a.carry[step.state(b, step.a.H) + j] = h;
        keep(dev, step, b, j, s);
        return h;
    }
    template <class Device>
    static FUSED_RNN_DEVICE Made make(const Device&, const ForwardStep<S>& step, int64_t, const Cell& cell,
                                      const F (&sums)[3]) {
        const F hn = cell.x[3] + sums[2];
        return {gru_step<Act, F>(cell.x[0] + sums[0], cell.x[1] + sums[1], cell.x[2], hn, cell.carried,
                                 act_of<Act>(step.a)),
                hn};
    }
    static FUSED_RNN_DEVICE F next(const Made& s) { return s.h; }
    template <class Device>
    static FUSED_RNN_DEVICE void keep(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j,
                                      const Made& s) {
        const Saved<S>& saved = step.a.saved[step.d];
        if (saved.gates) keep_gru_gates(dev, step.a.H, s, saved.gates_of(step.row(b)) + j);
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
        return {step.input(dev, b, 0, 3, j, false), step.input(dev, b, 1, 3, j, false),
                step.carried(dev, step.a.h0, b, j)};
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
        return {step.input(dev, b, 2, 3, j, false), step.a.z[step.state(b, step.a.H) + j],
                step.carried(dev, step.a.h0, b, j)};
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
    static constexpr bool kOnce = true, kTwice = false, kCarries = false;
    using F = ComputeType<S>;
    using Act = ActT<F>;
    struct Cell {
        F x[1];
    };
    struct Made {
        F h;
    };

    static FUSED_RNN_DEVICE const S* weight(const ForwardStep<S>& step, int g, int64_t j) { return step.weight(g, j); }
    template <class Device>
    static FUSED_RNN_DEVICE Cell biases(const Device& dev, const ForwardStep<S>& step, int64_t j) {
        return {{step.bias(dev, 0, j, false)}};
    }
    template <class Device>
    static FUSED_RNN_DEVICE Cell load(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j) {
        return {{step.input(dev, b, 0, G, j, false)}};
    }
    template <class Device>
    static FUSED_RNN_DEVICE F store(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j,
                                    const Cell& cell, const F (&sums)[1]) {
        const F fresh = make(dev, step, j, cell, sums).h;
        const auto kept = step.template zoneout_of_cell<Act, F>(b, j);
        const F h = kept.of_h ? kept.h(step.h_before(dev, b, j), fresh) : fresh;
        const Saved<S>& saved = step.a.saved[step.d];
        if (kept.of_h && saved.gates) dev.narrow(fresh, saved.gates_of(step.row(b))[j]);
        return h;
    }
    template <class Device>
    static FUSED_RNN_DEVICE Made make(const Device&, const ForwardStep<S>& step, int64_t, const Cell& cell,
                                      const F (&sums)[1]) {
        return {rnn_step<Act, F>(cell.x[0] + sums[0], act_of<Act>(step.a))};
    }
    template <class Device>
    static FUSED_RNN_DEVICE void keep(const Device&, const ForwardStep<S>&, int64_t, int64_t, const Made&) {}
};

}  // namespace fused_rnn::cuda
