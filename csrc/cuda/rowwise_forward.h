// The forward time loop with layer normalisation: h W_hh^T leaves sums; at the next barrier each warp takes rows of them,
// normalises them and goes on to the cells. x W_ih^T comes normalised. A projection follows as in forward.h.
#pragma once
#include "forward.h"
#include "row_math.h"

namespace fused_rnn::cuda {

// The product of a step, all gates side by side.
template <class Device, class S>
struct SumsWork {
    struct Cell {};
    const Device& dev;
    const ForwardStep<S>& step;
    ComputeType<S>* sums;  // [D, B, G*H]

    FUSED_RNN_DEVICE int64_t K() const { return step.a.R; }
    FUSED_RNN_DEVICE int64_t columns() const { return gates_of(step.a.cell, step.a.variant) * step.a.H; }
    FUSED_RNN_DEVICE const S* operand(int64_t b) const { return step.template seen_before<Any<ComputeType<S>>>(b); }
    FUSED_RNN_DEVICE int64_t skip(int64_t k) const { return k; }
    FUSED_RNN_DEVICE const S* weight(int, int64_t j) const { return step.weight(0, j); }
    FUSED_RNN_DEVICE bool copies16() const { return step.a.first_copies16; }
    FUSED_RNN_DEVICE Cell load(int64_t, int64_t) const { return {}; }
    FUSED_RNN_DEVICE void store(int64_t b, int64_t j, const Cell&, const ComputeType<S> (&own)[1]) const {
        sums[step.state(b, columns()) + j] = own[0];
    }
};

// What a warp does with row b of a step, whose sums begin at `sums`.
template <class Device, class S>
struct ForwardRow {
    using F = ComputeType<S>;
    using Act = Any<F>;
    const Device& dev;
    const ForwardStep<S>& step;
    const RowwiseForwardArgs<S>& a;
    const int64_t b;
    F* const sums;

    FUSED_RNN_DEVICE void operator()() const {
        const int64_t GH = gates_of(a.cell, a.variant) * a.H;
        const Saved<S>& saved = a.saved[step.d];
        S* const keep =
            saved.gates ? saved.gates_of(step.row(b)) + saved_activations_of(a.cell, a.variant) * a.H + GH : nullptr;
        const auto moments = moments_of<F>(
            dev, GH, [&](int64_t k) { return sum(k); },
            [&](int64_t k, F product) {
                if (keep) dev.narrow(product, keep[k]);
            });
        if (is_lstm(a.cell)) return lstm(moments);
        is_gru(a.cell) ? cells<GruForward<Any, S>>(moments) : cells<RnnForward<Any, S>>(moments);
    }

  private:
    FUSED_RNN_DEVICE F sum(int64_t k) const { return dev.fresh(sums + k); }

    // Of unit j; the first `none` of G gates have no product.
    template <int G>
    FUSED_RNN_DEVICE void normalise(const Moments<F>& moments, int64_t j, int none, F (&to)[G]) const {
        FUSED_RNN_UNROLL()
        for (int g = 0; g < G; ++g) {
            const int64_t k = (g - none) * a.H + j;
            to[g] = g < none ? F(0) : moments.normal(sum(k)) * dev.widen(a.norm.h[step.d][k]);
        }
    }

    template <class Math>
    FUSED_RNN_DEVICE void cells(const Moments<F>& moments) const {
        each_unit(dev, a.H, [&](int64_t j) {
            F own[Math::G];
            normalise(moments, j, 0, own);
            step.template show<Act>(dev, b, j, Math::store(dev, step, b, j, Math::load(dev, step, b, j), own));
        });
    }

    // h' = o tanh(gain normal + shift). o waits in the place of its sum, c as o sees it in that of the first.
    FUSED_RNN_DEVICE void lstm(const Moments<F>& moments) const {
        using Math = LstmForward<Any, S>;
        const int none = a.variant.coupled;
        F* const of_o = sums + (3 - none) * a.H;
        const auto kept = [&](int64_t j) { return step.template zoneout_of_cell<Act, F>(b, j); };
        each_unit(dev, a.H, [&](int64_t j) {
            F own[4];
            normalise(moments, j, none, own);
            const LstmStep<F> s = Math::advance(dev, step, b, j, Math::load(dev, step, b, j), own, kept(j));
            of_o[j] = s.o;
            sums[j] = s.c;
        });
        const auto cells = moments_of<F>(dev, a.H, [&](int64_t j) { return sums[j]; });
        const S *const gain = a.norm.c[step.d], *const shift = a.norm.c_shift[step.d];
        each_unit(dev, a.H, [&](int64_t j) {
            const F c = cells.normal(sums[j]) * dev.widen(gain[j]) + dev.widen(shift[j]);
            const F fresh = of_o[j] * act_of<Act>(a).state(c);
            const auto keeps = kept(j);
            const F h = keeps.of_h ? keeps.h(step.h_before(dev, b, j), fresh) : fresh;
            a.two_products ? dev.narrow(h, a.h_full[step.state(b, a.H) + j]) : step.template show<Act>(dev, b, j, h);
        });
    }
};

template <template <class, int> class Tile, class Device, class S>
FUSED_RNN_DEVICE void rowwise_forward_loop(const Device& dev, const RowwiseForwardArgs<S>& a, const Grid& grid) {
    const Share share(dev.block(), grid, a.seq.B);
    ForwardStep<S> step(a, share.direction);
    GroupBarrier<Device> barrier(dev, a.arrivals + share.group, grid.meets ? grid.parts : 1);
    const SumsWork<Device, S> gates{dev, step, a.sums};
    Product<Tile<S, 1>, 1, Device> product(dev, grid, share.part, a.R, grid.resident);
    if (grid.resident) product.load_weights(gates);

    for (int64_t walked = grid.first; walked < grid.last; ++walked) {
        step.at(walked);
        const int64_t b1 = share.end(a.seq.rows(step.t));
        if (grid.phases & 1) {
            product.run(gates, share.b0, b1, barrier);
            barrier.arrive();
        }
        if (grid.phases & 2) {
            barrier.await();
            each_row_of(dev, share.part, grid.parts, share.b0, b1, [&](int64_t b) {
                ForwardRow<Device, S>{dev, step, a, b, a.sums + step.state(b, gates.columns())}();
            });
            barrier.arrive();
        }
        if (a.two_products && grid.phases & 4) {
            const SecondWork<LstmForward<Any, S>, Device, S> last{dev, step};
            Product<Tile<S, 1>, 1, Device> second(dev, grid, share.part, a.H, false);
            second.run(last, share.b0, b1, barrier);
            barrier.arrive();
        }
    }
}

}  // namespace fused_rnn::cuda
