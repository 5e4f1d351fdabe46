// The cells backward: from dh of a step to dg, and what goes to the step before beside the product. As forward_cells.h.
//
// Of two products the first one's sum comes to show(), the second one's to store(), which returns what it kept. What load()
// takes of memory, as it lies there, is read() for torch's cells, of kReads gates: a loop can have all of that on its way
// before it looks at any, in widened().
#pragma once
#include "backward_step.h"

namespace fused_rnn::cuda {

template <template <class> class ActT, class S>
struct LstmBackward {
    static constexpr bool kOnce = true, kTwice = true;
    static constexpr int kGates = 4, kReads = 4;
    using F = ComputeType<S>;
    using Act = ActT<F>;
    using Args = BackwardArgs<S>;
    struct Cell {
        LstmGates<F> s;
        F c, c_before, dc;
    };
    struct Read {
        LstmGates<S> s;
        S c, c_before;
        F dc;  // of the step after, if there is one
    };
    struct Shown {};

    static FUSED_RNN_DEVICE bool passes(const Args& a) { return kVaries<Act> && a.passed; }

    template <class Device>
    static FUSED_RNN_DEVICE Cell load(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j) {
        return widened(dev, step, b, j, read(step, b, j));
    }
    static FUSED_RNN_DEVICE Read read(const BackwardStep<S>& step, int64_t b, int64_t j) {
        const Args& a = step.a;
        const Saved<const S>& saved = a.saved[step.d];
        const int64_t n = step.row(b);
        return {lstm_gates_at<Act>(a, saved.gates_of(n) + j), saved.state_of(n)[j], step.state_before(a.c0, b, j),
                a.dc[step.state(b, a.H) + j]};
    }
    template <class Device>
    static FUSED_RNN_DEVICE Cell widened(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j,
                                         const Read& from) {
        const Args& a = step.a;
        Cell cell{widen_lstm_gates<Act, F>(dev, a, from.s), dev.widen(from.c), dev.widen(from.c_before), 0};
        if (step.goes_on(b)) {
            cell.dc = from.dc;
        } else if (step.ends(b) && a.dcn) {
            cell.dc = dev.widen(a.dcn[step.state(b, a.H) + j]);
        }
        if (a.dcells) cell.dc += dev.widen(a.dcells[(step.row(b) * a.D + step.d) * a.H + j]);
        return cell;
    }
    template <class Device>
    static FUSED_RNN_DEVICE LstmGrad<F> store(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j,
                                              const Cell& cell, F dh) {
        const Args& a = step.a;
        const Act act = act_of<Act>(a);
        const auto kept = step.template zoneout_of_cell<Act, F>(b, j);
        const F tc = act.state(seen_by_o(cell, kept)), fresh = kept.to_new_h(dh);
        return retreat(dev, step, b, j, cell, dh, act.gate_grad(cell.s.o, fresh * tc),
                       act.state_grad(tc, fresh * cell.s.o), kept);
    }
    // c as o saw it, which zoneout may have thrown away.
    template <class Kept>
    static FUSED_RNN_DEVICE F seen_by_o(const Cell& cell, const Kept& kept) {
        return kept.of_c ? cell.s.f * cell.c_before + cell.s.i * cell.s.g : cell.c;
    }
    // The rest, from what came to o and what came from h to that c.
    template <class Device, class Kept>
    static FUSED_RNN_DEVICE LstmGrad<F> retreat(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j,
                                                const Cell& cell, F dh, F d_o, F dc, const Kept& kept) {
        const Args& a = step.a;
        const LstmGates<F>& s = cell.s;
        const LstmGrad<F> grad = lstm_cell_grad<Act, F>(s.i, s.f, s.g, d_o, cell.c_before, kept.to_new_c(cell.dc) + dc,
                                                        act_of<Act>(a), ties_of<Act, F>(dev, a, step.d, j));
        step.pass_c(dev, b, j, kept.of_c ? grad.c_prev + kept.to_old_c(cell.dc) : grad.c_prev);
        if (kept.of_h) step.pass_h(b, j, kept.to_old_h(dh));
        if (a.whole_c) a.whole_c[step.noted(step.row(b), a.H) + j] = kept.of_c ? cell.dc : grad.c;
        keep_lstm_gates<Act>(dev, a, grad, step.gates(step.row(b)) + j);
        return grad;
    }

    // With a projection what comes to h is dr.
    template <class Device>
    static FUSED_RNN_DEVICE Shown load_shown(const Device&, const BackwardStep<S>&, int64_t, int64_t) {
        return {};
    }
    template <class Device>
    static FUSED_RNN_DEVICE void show(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j,
                                      const Shown&, F dh) {
        const auto kept = step.template zoneout_of_h<Act, F>(b, j);
        if (kept.of_h) step.pass_h(b, j, kept.to_old_h(dh));
        dev.narrow(kept.to_new_h(dh), step.second(step.row(b))[j]);
    }
};

template <template <class> class ActT, class S>
struct GruBackward {
    static constexpr bool kOnce = true, kTwice = false;
    static constexpr int kGates = 3, kReads = 4;
    using F = ComputeType<S>;
    using Act = ActT<F>;
    template <class V>
    struct Of {
        V r, z, n, hn, h_before;
    };
    using Cell = Of<F>;
    using Read = Of<S>;

    static FUSED_RNN_DEVICE bool passes(const BackwardArgs<S>&) { return true; }

    template <class Device>
    static FUSED_RNN_DEVICE Cell load(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j) {
        return widened(dev, step, b, j, read(step, b, j));
    }
    static FUSED_RNN_DEVICE Read read(const BackwardStep<S>& step, int64_t b, int64_t j) {
        const int64_t H = step.a.H;
        const S* s = step.a.saved[step.d].gates_of(step.row(b)) + j;
        return {s[0], s[H], s[2 * H], s[3 * H], step.state_before(step.a.h0, b, j)};
    }
    template <class Device>
    static FUSED_RNN_DEVICE Cell widened(const Device& dev, const BackwardStep<S>&, int64_t, int64_t, const Read& s) {
        return {dev.widen(s.r), dev.widen(s.z), dev.widen(s.n), dev.widen(s.hn), dev.widen(s.h_before)};
    }
    template <class Device>
    static FUSED_RNN_DEVICE GruGrad<F> store(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j,
                                             const Cell& s, F dh) {
        const auto kept = step.template zoneout_of_cell<Act, F>(b, j);
        const GruGrad<F> grad =
            gru_step_grad<Act, F>(s.r, s.z, s.n, s.hn, s.h_before, kept.to_new_h(dh), act_of<Act>(step.a));
        step.pass_h(b, j, kept.of_h ? grad.h_prev + kept.to_old_h(dh) : grad.h_prev);
        keep_gru_gates(dev, step.a.H, grad, step.gates(step.row(b)) + j);
        return grad;
    }
};

// With the reset gate before the product: dh gives d_z and d_n, whose product with W_hn is the gradient of r h.
template <template <class> class ActT, class S>
struct GruBeforeBackward {
    static constexpr bool kOnce = false, kTwice = true;
    using F = ComputeType<S>;
    using Act = ActT<F>;
    struct Shown {
        F z, n, h_before;
    };
    struct Cell {
        F r, h_before;
    };

    static FUSED_RNN_DEVICE bool passes(const BackwardArgs<S>&) { return true; }

    template <class Device>
    static FUSED_RNN_DEVICE Shown load_shown(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j) {
        const S* s = step.a.saved[step.d].gates_of(step.row(b)) + j;
        return {dev.widen(s[step.a.H]), dev.widen(s[2 * step.a.H]), dev.widen(step.state_before(step.a.h0, b, j))};
    }
    template <class Device>
    static FUSED_RNN_DEVICE void show(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j,
                                      const Shown& s, F dh) {
        const auto kept = step.template zoneout_of_h<Act, F>(b, j);
        const GruGrad<F> grad = gru_update_grad<Act, F>(s.z, s.n, s.h_before, kept.to_new_h(dh), act_of<Act>(step.a));
        step.a.passed[step.state(b, step.a.R) + j] = kept.of_h ? grad.h_prev + kept.to_old_h(dh) : grad.h_prev;
        S* to = step.gates(step.row(b)) + j;
        dev.narrow(grad.z, to[step.a.H]);
        dev.narrow(grad.n, to[2 * step.a.H]);
    }

    template <class Device>
    static FUSED_RNN_DEVICE Cell load(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j) {
        return {dev.widen(step.a.saved[step.d].gates_of(step.row(b))[j]),
                dev.widen(step.state_before(step.a.h0, b, j))};
    }
    // `drh`: the gradient of r h.
    template <class Device>
    static FUSED_RNN_DEVICE void store(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j,
                                       const Cell& s, F drh) {
        const F seen = step.masked_h(b, j, s.h_before);
        dev.narrow(act_of<Act>(step.a).gate_grad(s.r, drh * seen), step.gates(step.row(b))[j]);
        step.pass_h(b, j, step.passed(b, j) + step.masked_h(b, j, drh * s.r));
    }
};

template <template <class> class ActT, class S>
struct RnnBackward {
    static constexpr bool kOnce = true, kTwice = false;
    static constexpr int kGates = 1, kReads = 0;
    using F = ComputeType<S>;
    using Act = ActT<F>;
    using Read = S;
    struct Cell {
        F fresh;
    };

    static FUSED_RNN_DEVICE bool passes(const BackwardArgs<S>& a) { return kVaries<Act> && a.passed; }

    template <class Device>
    static FUSED_RNN_DEVICE Cell load(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j) {
        return widened(dev, step, b, j, read(step, b, j));
    }
    static FUSED_RNN_DEVICE Read read(const BackwardStep<S>& step, int64_t b, int64_t j) {
        const Saved<const S>& saved = step.a.saved[step.d];
        const int64_t n = step.row(b);
        // Zoneout may have thrown away what the step made.
        return (passes(step.a) ? saved.gates_of(n) : saved.state_of(n))[j];
    }
    template <class Device>
    static FUSED_RNN_DEVICE Cell widened(const Device& dev, const BackwardStep<S>&, int64_t, int64_t, Read fresh) {
        return {dev.widen(fresh)};
    }
    template <class Device>
    static FUSED_RNN_DEVICE F store(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j, const Cell& s,
                                    F dh) {
        const auto kept = step.template zoneout_of_cell<Act, F>(b, j);
        if (kept.of_h) step.pass_h(b, j, kept.to_old_h(dh));
        const F grad = rnn_step_grad<Act, F>(s.fresh, kept.to_new_h(dh), act_of<Act>(step.a));
        dev.narrow(grad, step.gates(step.row(b))[j]);
        return grad;
    }
};

}  // namespace fused_rnn::cuda
