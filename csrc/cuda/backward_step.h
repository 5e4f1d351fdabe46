// A step of the backward pass of one direction: what it reads, and what goes to the step before beside the product.
#pragma once
#include "gates.h"
#include "walk.h"

namespace fused_rnn::cuda {

template <class S>
struct BackwardStep : Walk<BackwardArgs<S>> {
    using Walk<BackwardArgs<S>>::Walk;
    using Walk<BackwardArgs<S>>::a;
    using Walk<BackwardArgs<S>>::d;
    using F = ComputeType<S>;

    FUSED_RNN_DEVICE S* gates(int64_t n) const { return a.dg[d] + n * a.width; }
    FUSED_RNN_DEVICE S* second(int64_t n) const { return a.dr[d] + n * a.ld_dr; }
    // dg of the step after, none where the row or its episode ended.
    FUSED_RNN_DEVICE const S* later_gates(int64_t b) const {
        return this->goes_on(b) ? gates(this->row_after(b)) : nullptr;
    }
    // Whether h0 reaches the first step that row b takes.
    FUSED_RNN_DEVICE bool reads_initial(int64_t b) const { return d || !this->marked(b, 0); }
    // That step's row: in a reverse direction rows begin at their own lengths.
    FUSED_RNN_DEVICE int64_t first_row(int64_t b) const {
        int64_t first = 0;
        if (d) {
            int64_t end = a.seq.T;  // the row is there at step `first`, and no more at `end`
            while (end - first > 1) {
                const int64_t middle = (first + end) / 2;
                (a.seq.rows(middle) > b ? first : end) = middle;
            }
        }
        return a.seq.row(first) + b;
    }
    // What passes by the product from h of row b, unit j, to h before it; and to h0 too where an episode begins from that.
    FUSED_RNN_DEVICE void pass_h(int64_t b, int64_t j, F dh) const {
        const int64_t at = this->state(b, a.R) + j;
        a.passed[at] = dh;
        if (a.sum_h && this->starts(b)) a.sum_h[at] += dh;
    }
    FUSED_RNN_DEVICE F passed(int64_t b, int64_t j) const { return a.passed[this->state(b, a.R) + j]; }
    // Row n of what is noted, [D, N, size].
    FUSED_RNN_DEVICE int64_t noted(int64_t n, int64_t size) const { return (d * a.N + n) * size; }
    // What goes to c of the step before, and when the row has taken its first step to c0.
    template <class Device>
    FUSED_RNN_DEVICE void pass_c(const Device& dev, int64_t b, int64_t j, F dc) const {
        const int64_t at = this->state(b, a.H) + j;
        a.dc[at] = dc;
        if (a.sent_c && !this->starts(b)) a.sent_c[noted(this->row_before(b), a.H) + j] = dc;
        if (a.sum_c && this->starts(b)) a.sum_c[at] += dc;
        if (this->begins(b)) dev.narrow(a.sum_c ? a.sum_c[at] : this->anew(b) ? F(0) : dc, a.dc0[at]);
    }
    // State of the step before: what was kept, or `first` [D, B, H].
    FUSED_RNN_DEVICE S state_before(const S* first, int64_t b, int64_t j) const {
        const S* from = this->starts(b) ? this->start(first, b, a.H) : a.saved[d].state_of(this->row_before(b));
        return from ? from[j] : S{};
    }
    // What y and hn send to the shown h.
    FUSED_RNN_DEVICE S from_y(int64_t b, int64_t j) const { return a.dy ? a.dy[this->output(this->row(b)) + j] : S{}; }
    template <class Device>
    FUSED_RNN_DEVICE F from_hn(const Device& dev, int64_t b, int64_t j) const {
        return this->ends(b) && a.dhn ? dev.widen(a.dhn[this->state(b, a.R) + j]) : F(0);
    }
    template <class Device>
    FUSED_RNN_DEVICE F shown(const Device& dev, int64_t b, int64_t j) const {
        return dev.widen(from_y(b, j)) + from_hn(dev, b, j);
    }
    // What a step reads of row b, unit j, of `gates` gates.
    template <class Device>
    FUSED_RNN_DEVICE void prefetch(const Device& dev, int gates, int64_t b, int64_t j) const {
        const Saved<const S>& saved = a.saved[d];
        const int64_t n = this->row(b);
        FUSED_RNN_UNROLL()
        for (int g = 0; g < gates; ++g) dev.prefetch(saved.gates_of(n) + g * a.H + j);
        if (a.dy) dev.prefetch(a.dy + this->output(n) + j);
        if (!this->begins(b)) dev.prefetch(saved.state_of(this->row_before(b)) + j);
    }
};

}  // namespace fused_rnn::cuda
