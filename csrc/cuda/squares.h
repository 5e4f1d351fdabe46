// What a backward tells of its gradients (core/square.h): sums over the units of a row, after the loop has noted what it carried.
// In f64, as the square of a gradient that f32 still holds may be too small for it. Clips, and what went past W_hh, follow again
// from what is noted, as in the loop.
#pragma once
#include "../core/square.h"
#include "backward_step.h"
#include "row_math.h"

namespace fused_rnn::cuda {

template <class S>
struct SquaresArgs {
    BackwardArgs<S> loop;  // with sent_h, and of an LSTM sent_c and whole_c
    double* to;            // [kSquareCount, D, N]

    // Those that a packed sequence lacks among them.
    constexpr int64_t rows() const { return loop.D * loop.seq.T * loop.seq.B; }
};

// A state of row b of a step: what the step after sent to it, and what of that arrived.
template <class Device, class S>
struct NotedState {
    using F = ComputeType<S>;
    const Device& dev;
    const BackwardStep<S>& step;
    const int64_t b;
    const bool goes_on;
    const F* const noted;
    const S* const last;  // what came to the last step instead
    const F factor;

    FUSED_RNN_DEVICE NotedState(const Device& device, const BackwardStep<S>& s, int64_t row, int64_t units,
                                const F* sent, const S* from_last)
        : dev(device),
          step(s),
          b(row),
          goes_on(s.goes_on(row)),
          noted(sent + s.noted(s.row(row), units)),
          last(s.ends(row) && from_last ? from_last + s.state(row, units) : nullptr),
          factor(goes_on ? clip_factor<F>(dev, s.a.variant, units, [&](int64_t j) { return bounded(j); }) : F(0)) {}

    FUSED_RNN_DEVICE F sent(int64_t j) const { return noted[j]; }  // if the row goes on
    FUSED_RNN_DEVICE F came(int64_t j) const {
        return goes_on ? bounded(j) * factor : last ? dev.widen(last[j]) : F(0);
    }

  private:
    FUSED_RNN_DEVICE F bounded(int64_t j) const { return clip_value(step.a.variant, noted[j]); }
};

template <class Device, class S>
struct NotedH : NotedState<Device, S> {
    using F = ComputeType<S>;
    using State = NotedState<Device, S>;
    using State::b, State::came, State::dev, State::goes_on, State::step;

    FUSED_RNN_DEVICE NotedH(const Device& device, const BackwardStep<S>& s, int64_t row)
        : State(device, s, row, s.a.R, s.a.sent_h, s.a.dhn) {}

    FUSED_RNN_DEVICE F whole(int64_t j) const {
        const F shown = step.shown(dev, b, j);
        return goes_on ? came(j) + shown : shown;
    }
    // What of that the step sends on past W_hh.
    FUSED_RNN_DEVICE F kept(int64_t j) const {
        const BackwardArgs<S>& a = step.a;
        if (!a.passed) return F(0);
        const F dh = whole(j);
        const auto zoneout = step.template zoneout_of_h<Any<F>, F>(b, j);
        if (!is_gru(a.cell)) return zoneout.to_old_h(dh);
        const F z = dev.widen(a.saved[step.d].gates_of(step.row(b))[a.H + j]);
        return zoneout.to_new_h(dh) * z + zoneout.to_old_h(dh);
    }
};

// Row b of a step. What went past W_hh to it is to be asked of the step after, if it goes on there.
template <class Device, class S>
FUSED_RNN_DEVICE void tell(const Device& dev, const SquaresArgs<S>& args, const BackwardStep<S>& step,
                           const BackwardStep<S>& after, int64_t b) {
    const BackwardArgs<S>& a = args.loop;
    const auto sum = [&](Square which, int64_t count, const auto& value) {
        double squares = 0;
        each_unit(dev, count, [&](int64_t j) {
            const double wide = value(j);
            squares += wide * wide;
        });
        squares = sum_lanes(dev, squares);
        if (dev.thread() % kWarp == 0) args.to[which * a.D * a.N + step.noted(step.row(b), 1)] = squares;
    };

    const NotedH<Device, S> h(dev, step, b), next(dev, after, b);
    const int64_t sent_on = h.goes_on ? a.R : 0;
    sum(kSquareH, a.R, [&](int64_t j) { return h.whole(j); });
    sum(kSquareLaterH, a.R, [&](int64_t j) { return h.came(j); });
    sum(kSquareSentH, sent_on, [&](int64_t j) { return h.sent(j); });
    sum(kSquareKept, sent_on, [&](int64_t j) { return next.kept(j); });
    sum(kSquareRecurrent, sent_on, [&](int64_t j) { return h.sent(j) - next.kept(j); });

    const int64_t cells = is_lstm(a.cell) ? a.H : 0;
    const NotedState<Device, S> c(dev, step, b, cells, a.sent_c, a.dcn);
    sum(kSquareC, cells, [&](int64_t j) { return a.whole_c[step.noted(step.row(b), a.H) + j]; });
    sum(kSquareLaterC, cells, [&](int64_t j) { return c.came(j); });
    sum(kSquareSentC, c.goes_on ? cells : 0, [&](int64_t j) { return c.sent(j); });
}

template <class Device, class S>
FUSED_RNN_DEVICE void each_row(const Device& dev, const SquaresArgs<S>& args) {
    const BackwardArgs<S>& a = args.loop;
    each_row_of(dev, args.rows(), [&](int64_t i) {
        const int64_t b = i % a.seq.B, walked = i / a.seq.B % a.seq.T;
        BackwardStep<S> step(a, i / a.seq.B / a.seq.T), after = step;
        step.at(walked);
        after.at(step.goes_on(b) ? walked + 1 : walked);
        if (b < a.seq.rows(step.t)) tell(dev, args, step, after, b);
    });
}

}  // namespace fused_rnn::cuda
