// A step of the forward pass of one direction: what it reads and where it shows its h.
#pragma once
#include "gates.h"
#include "walk.h"

namespace fused_rnn::cuda {

template <class S>
struct ForwardStep : Walk<ForwardArgs<S>> {
    using Walk<ForwardArgs<S>>::Walk;
    using Walk<ForwardArgs<S>>::a;
    using Walk<ForwardArgs<S>>::d;
    using F = ComputeType<S>;

    // h of the step before; null where it is zero.
    FUSED_RNN_DEVICE const S* h_before(int64_t b) const {
        return this->starts(b) ? this->start(a.h0, b, a.R) : a.y + this->output(this->row_before(b));
    }
    template <class Device>
    FUSED_RNN_DEVICE F h_before(const Device& dev, int64_t b, int64_t j) const {
        const S* h = h_before(b);
        return h ? dev.widen(h[j]) : F(0);
    }
    // What goes from step to step beside it, an LSTM's c or a GRU's h, not narrowed in between: from `first` on.
    template <class Device>
    FUSED_RNN_DEVICE F carried(const Device& dev, const S* first, int64_t b, int64_t j) const {
        return this->starts(b) ? this->start(dev, first, b, a.H, j) : a.carry[this->state(b, a.H) + j];
    }
    // What W_hh sees of it.
    template <class Act>
    FUSED_RNN_DEVICE const S* seen_before(int64_t b) const {
        if constexpr (kVaries<Act>) {
            if (a.mask) return this->starts(b) ? this->start(a.h0_seen, b, a.R) : seen(this->before, b);
        }
        return h_before(b);
    }
    template <class Act, class Device>
    FUSED_RNN_DEVICE void show(const Device& dev, int64_t b, int64_t j, F h) const {
        dev.narrow(h, a.y[this->output(this->row(b)) + j]);
        if (this->ends(b)) dev.narrow(h, a.hn[this->state(b, a.R) + j]);
        if constexpr (kVaries<Act>) {
            if (a.mask) dev.narrow(this->masked_h(b, j, h), seen(this->t, b)[j]);
        }
    }
    // Row of W_hh of gate g, unit j.
    FUSED_RNN_DEVICE const S* weight(int g, int64_t j) const { return a.w_hh[d] + (g * a.H + j) * a.R; }
    // Pre-activation of gate g of G but for the recurrent product: the input's part of row n, and what a unit adds to it in
    // each row; `hidden`: b_hh belongs inside another product.
    FUSED_RNN_DEVICE const F* gx(int64_t n, int g, int G, int64_t j) const { return a.gx[d] + (n * G + g) * a.H + j; }
    template <class Device>
    FUSED_RNN_DEVICE F bias(const Device& dev, int g, int64_t j, bool hidden) const {
        const F x = a.b_ih[d] ? dev.widen(a.b_ih[d][g * a.H + j]) : F(0);
        return hidden ? x : x + hidden_bias(dev, g, j);
    }
    template <class Device>
    FUSED_RNN_DEVICE F hidden_bias(const Device& dev, int g, int64_t j) const {
        return a.b_hh[d] ? dev.widen(a.b_hh[d][g * a.H + j]) : F(0);
    }
    template <class Device>
    FUSED_RNN_DEVICE F input(const Device& dev, int64_t b, int g, int G, int64_t j, bool hidden) const {
        return *gx(this->row(b), g, G, j) + bias(dev, g, j, hidden);
    }

  private:
    // Blocks that read those of one step write those of the next.
    FUSED_RNN_DEVICE S* seen(int64_t t, int64_t b) const {
        return a.seen + (t & 1) * a.D * a.seq.B * a.R + this->state(b, a.R);
    }
};

}  // namespace fused_rnn::cuda
