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
    // Whether an episode begins at step s: the state is set anew between s - 1 and s, whichever way a direction walks.
    FUSED_RNN_DEVICE bool marked(int64_t b, int64_t s) const {
        return a.reset && b < a.seq.rows(s) && a.reset[a.seq.row(s) + b];
    }
    // Whether the state before t is set anew; whether that of t goes on to the step after.
    FUSED_RNN_DEVICE bool anew(int64_t b) const { return marked(b, d ? before : t); }
    FUSED_RNN_DEVICE bool goes_on(int64_t b) const { return !ends(b) && !marked(b, d ? t : after); }
    // Whether row b comes to t with a state that no step made,
    FUSED_RNN_DEVICE bool starts(int64_t b) const { return begins(b) || anew(b); }
    // and with which, of `first` [D, B, size]: null where it is zero.
    template <class S>
    FUSED_RNN_DEVICE const S* start(const S* first, int64_t b, int64_t size) const {
        return anew(b) && !a.reset_initial ? nullptr : first + state(b, size);
    }
    template <class Device, class S>
    FUSED_RNN_DEVICE ComputeType<S> start(const Device& dev, const S* first, int64_t b, int64_t size, int64_t j) const {
        const S* from = start(first, b, size);
        return from ? dev.widen(from[j]) : ComputeType<S>(0);
    }

    // What zoneout keeps of unit j of a step's cells: all or nothing as drawn, or, without seeds, as much as it does on average.
    // What the first of two products leads to is no h yet.
    template <class Act, class F>
    FUSED_RNN_DEVICE auto zoneout_of_cell(int64_t b, int64_t j) const {
        if constexpr (kVaries<Act>) {
            return zoneout<F>(b, j, a.two_products ? 0 : a.variant.zoneout_h, a.variant.zoneout_c);
        } else {
            return AllNew<F>{};
        }
    }
    // And of h alone.
    template <class Act, class F>
    FUSED_RNN_DEVICE auto zoneout_of_h(int64_t b, int64_t j) const {
        if constexpr (kVaries<Act>) {
            return zoneout<F>(b, j, a.variant.zoneout_h, 0);
        } else {
            return AllNew<F>{};
        }
    }
    // Recurrent dropout's mask of unit j of h.
    template <class F>
    FUSED_RNN_DEVICE F masked_h(int64_t b, int64_t j, F x) const {
        return a.mask ? masked(x, a.mask[state(b, a.R) + j]) : x;
    }

    // Row of the whole sequence.
    FUSED_RNN_DEVICE int64_t row(int64_t b) const { return a.seq.row(t) + b; }
    FUSED_RNN_DEVICE int64_t row_before(int64_t b) const { return a.seq.row(before) + b; }
    FUSED_RNN_DEVICE int64_t row_after(int64_t b) const { return a.seq.row(after) + b; }

    // Where they begin in tensors [D, B, size] and [N, D*R].
    FUSED_RNN_DEVICE int64_t state(int64_t b, int64_t size) const { return (d * a.seq.B + b) * size; }
    FUSED_RNN_DEVICE int64_t output(int64_t n) const { return (n * a.D + d) * a.R; }

  private:
    template <class F>
    FUSED_RNN_DEVICE Zoneout<F> zoneout(int64_t b, int64_t j, double of_h, double of_c) const {
        F h = static_cast<F>(of_h), c = static_cast<F>(of_c);
        if ((of_h > 0 || of_c > 0) && a.seeds) {
            const RandomWords<uint32_t> words = random_words(a.seeds[d * a.seq.B + b], Draw::kZoneout, t, j);
            h = happens(words.x[0], of_h);
            c = happens(words.x[1], of_c);
        }
        return {of_h > 0, of_c > 0, h, F(1) - h, c, F(1) - c};
    }
};

}  // namespace fused_rnn::cuda
