// The backward time loop where whole rows are looked at: to clip what a step sends to the one before, and for the gradients of
// normalised products and cells. A product leaves sums, at the next barrier each warp takes rows of them:
//
//   dg W_hh                          what h gets from later steps
//   rows: clip, y and hn, the cell   dg; with two products what show() makes of it,
//   its product with W_hr            and then
//   rows: the cell                   dg
//
// Bounds hold for what all later steps send together, so it is here, not outside, that h0 gets what episodes send to it.
#pragma once
#include "backward.h"
#include "row_math.h"

namespace fused_rnn::cuda {

template <class S>
struct RowwiseBackwardStep : BackwardStep<S> {
    const RowwiseBackwardArgs<S>& own;
    FUSED_RNN_DEVICE RowwiseBackwardStep(const RowwiseBackwardArgs<S>& args, int64_t direction)
        : BackwardStep<S>(args, direction), own(args) {}

    FUSED_RNN_DEVICE ComputeType<S>* sums(int64_t b) const { return own.sums + this->state(b, own.ld_sums); }
    FUSED_RNN_DEVICE int64_t product_size() const { return own.G * own.H; }
    // Gradients of h W_hh^T of row n.
    FUSED_RNN_DEVICE S* product(int64_t n) const {
        return own.variant.layer_norm ? own.dproduct[this->d] + n * product_size() : this->gates(n);
    }
    // Whether row b's first step begins from the initial state.
    FUSED_RNN_DEVICE bool reads_first(int64_t b) const { return own.reset_initial || this->reads_initial(b); }
};

// Leaves its sums where the rows that follow find them.
template <class S, template <class, class> class Factors>
struct LeftProduct : Factors<S, RowwiseBackwardStep<S>> {
    struct Cell {};
    FUSED_RNN_DEVICE Cell load(int64_t, int64_t) const { return {}; }
    FUSED_RNN_DEVICE void store(int64_t b, int64_t j, const Cell&, const ComputeType<S> (&sums)[1]) const {
        this->step.sums(b)[j] = sums[0];
    }
};

// dg W_hh: of the step after, whichever state that began from, or after the last step of each row's first.
template <class S>
struct SentWork : LeftProduct<S, HiddenProduct> {
    bool first;
    using LeftProduct<S, HiddenProduct>::step;

    FUSED_RNN_DEVICE SentWork(const RowwiseBackwardStep<S>& s, bool of_first)
        : LeftProduct<S, HiddenProduct>{{s}}, first(of_first) {}
    FUSED_RNN_DEVICE const S* operand(int64_t b) const {
        if (first) return step.reads_first(b) ? step.product(step.first_row(b)) : nullptr;
        return step.ends(b) ? nullptr : step.product(step.row_after(b));
    }
    FUSED_RNN_DEVICE int64_t skip(int64_t k) const {
        return step.a.variant.layer_norm ? k : HiddenProduct<S, RowwiseBackwardStep<S>>::skip(k);
    }
};

// What a warp does with row b of a step.
template <class Device, class S>
struct BackwardRow {
    using F = ComputeType<S>;
    using Act = Any<F>;
    using Lstm = LstmBackward<Any, S>;
    const Device& dev;
    const RowwiseBackwardStep<S>& step;
    const RowwiseBackwardArgs<S>& a;
    const int64_t b;

    FUSED_RNN_DEVICE BackwardRow(const Device& device, const RowwiseBackwardStep<S>& s, int64_t row)
        : dev(device), step(s), a(s.own), b(row) {}

    // After the first product of a step, and after the second.
    FUSED_RNN_DEVICE void first() const {
        receive();
        if (!a.two_products) return second();
        is_lstm(a.cell) ? show<Lstm>() : show<GruBeforeBackward<Any, S>>();
    }
    FUSED_RNN_DEVICE void second() const {
        if (is_lstm(a.cell)) {
            a.variant.layer_norm ? normed_cells() : cells<Lstm>();
            send_cells();
        } else if (a.variant.reset_before) {
            cells<GruBeforeBackward<Any, S>>();
        } else if (is_gru(a.cell)) {
            cells<GruBackward<Any, S>>();
        } else {
            cells<RnnBackward<Any, S>>();
        }
        if (a.variant.layer_norm) send_product();
    }
    // After the product that follows the last step: dh0.
    FUSED_RNN_DEVICE void last() const {
        each_sent(step.reads_first(b), [&](int64_t j, F dh) {
            const int64_t at = step.state(b, a.R) + j;
            dev.narrow(a.to_h0 ? dh + a.to_h0[at] : dh, a.dh0[at]);
        });
    }

  private:
    FUSED_RNN_DEVICE F sum(int64_t j) const { return dev.fresh(step.sums(b) + j); }

    // What came to the state that a step began from,
    FUSED_RNN_DEVICE F sent(int64_t j) const {
        const F product = step.masked_h(b, j, sum(j));
        return a.passed ? product + step.passed(b, j) : product;
    }
    // and f(j, dh) of the same, clipped; nothing came unless `any`.
    template <class Function>
    FUSED_RNN_DEVICE void each_sent(bool any, const Function& f) const {
        const auto dh = [&](int64_t j) { return clip_value(a.variant, sent(j)); };
        const F factor = any ? clip_factor<F>(dev, a.variant, a.R, dh) : F(0);
        each_unit(dev, a.R, [&](int64_t j) { f(j, any ? dh(j) * factor : F(0)); });
    }

    // dh, in place of the sums.
    FUSED_RNN_DEVICE void receive() const {
        const bool goes_on = step.goes_on(b);
        if (a.sent_h && goes_on)
            each_unit(dev, a.R, [&](int64_t j) { a.sent_h[step.noted(step.row(b), a.R) + j] = sent(j); });
        each_sent(!step.ends(b), [&](int64_t j, F dh) {
            if (!goes_on && a.to_h0) a.to_h0[step.state(b, a.R) + j] += dh;
            const F shown = step.shown(dev, b, j);
            step.sums(b)[j] = goes_on ? dh + shown : shown;
        });
    }

    template <class Math>
    FUSED_RNN_DEVICE void show() const {
        each_unit(dev, a.R, [&](int64_t j) { Math::show(dev, step, b, j, Math::load_shown(dev, step, b, j), sum(j)); });
    }
    template <class Math>
    FUSED_RNN_DEVICE void cells() const {
        each_unit(dev, a.H, [&](int64_t j) { Math::store(dev, step, b, j, Math::load(dev, step, b, j), sum(j)); });
    }

    // Of h = o tanh(gain normal + shift), with the normal of c as o saw it.
    FUSED_RNN_DEVICE void normed_cells() const {
        const Act act = act_of<Act>(a);
        const S *const gain = a.norm.c[step.d], *const shift = a.norm.c_shift[step.d];
        F *const dnorm = a.dnorm[step.d] + step.row(b) * 2 * a.H, *const noted = dnorm + a.H;
        const auto kept = [&](int64_t j) { return step.template zoneout_of_cell<Act, F>(b, j); };
        const auto c = [&](int64_t j) { return Lstm::seen_by_o(Lstm::load(dev, step, b, j), kept(j)); };
        const auto shown = [&](F normal, int64_t j) {
            return act.state(normal * dev.widen(gain[j]) + dev.widen(shift[j]));
        };
        // c waits where its gradient will be: it takes more than a load.
        each_unit(dev, a.H, [&](int64_t j) { noted[j] = c(j); });
        const Moments<F> moments = moments_of<F>(dev, a.H, [&](int64_t j) { return noted[j]; });
        each_unit(dev, a.H, [&](int64_t j) {
            const F normal = moments.normal(noted[j]), tc = shown(normal, j);
            const F d = act.state_grad(tc, kept(j).to_new_h(sum(j)) * Lstm::load(dev, step, b, j).s.o);
            dnorm[j] = d * normal;
            noted[j] = d;
        });
        normal_grad(
            dev, moments, 1, a.H, [&](int64_t, int64_t j) { return c(j); },
            [&](int64_t, int64_t j) { return noted[j] * dev.widen(gain[j]); },
            [&](int64_t, int64_t j, F dc) {
                const auto cell = Lstm::load(dev, step, b, j);
                const auto keeps = kept(j);
                const F dh = sum(j), tc = shown(moments.normal(Lstm::seen_by_o(cell, keeps)), j);
                const F d_o = act.gate_grad(cell.s.o, keeps.to_new_h(dh) * tc);
                Lstm::retreat(dev, step, b, j, cell, dh, d_o, dc, keeps);
            });
    }

    // What goes to c of the step before, clipped.
    FUSED_RNN_DEVICE void send_cells() const {
        const int64_t at = step.state(b, a.H);
        const auto dc = [&](int64_t j) { return clip_value(a.variant, a.dc[at + j]); };
        const F factor = clip_factor<F>(dev, a.variant, a.H, dc);
        const bool starts = step.starts(b), begins = step.begins(b), lost = step.anew(b) && !a.reset_initial;
        each_unit(dev, a.H, [&](int64_t j) {
            const F sent = a.dc[at + j] = dc(j) * factor;
            if (starts && a.to_c0) a.to_c0[at + j] += sent;
            if (begins) dev.narrow(a.to_c0 ? a.to_c0[at + j] : lost ? F(0) : sent, a.dc0[at + j]);
        });
    }

    // The gradient of h W_hh^T from that of what its normalisation gave.
    FUSED_RNN_DEVICE void send_product() const {
        const int64_t n = step.row(b), H = a.H, GH = step.product_size();
        const S* const product = a.saved[step.d].gates_of(n) + saved_activations_of(a.cell, a.variant) * H + GH;
        const S *const dg = step.gates(n), *const gain = a.norm.h[step.d];
        S* const to = step.product(n);
        const auto moments = moments_of<F>(dev, GH, [&](int64_t k) { return dev.widen(product[k]); });
        normal_grad(
            dev, moments, a.G, H, [&](int64_t g, int64_t j) { return dev.widen(product[g * H + j]); },
            [&](int64_t g, int64_t j) {
                const int64_t k = g * H + j;
                return dev.widen(dg[hidden_column(a.cell, H, k)]) * dev.widen(gain[k]);
            },
            [&](int64_t g, int64_t j, F d) { dev.narrow(d, to[g * H + j]); });
    }
};

template <template <class, int> class Tile, class Device, class S>
FUSED_RNN_DEVICE void rowwise_backward_loop(const Device& dev, const RowwiseBackwardArgs<S>& a, const Grid& grid) {
    const Share share(dev.block(), grid, a.seq.B);
    RowwiseBackwardStep<S> step(a, share.direction);
    GroupBarrier<Device> barrier(dev, a.arrivals + share.group, grid.meets ? grid.parts : 1);
    Product<Tile<S, 1>, 1, Device> product(dev, grid, share.part, step.product_size(), grid.resident);
    if (grid.resident) product.load_weights(SentWork<S>(step, false));
    const auto each_row = [&](int64_t b1, const auto& f) {
        barrier.await();
        each_row_of(dev, share.part, grid.parts, share.b0, b1,
                    [&](int64_t b) { f(BackwardRow<Device, S>(dev, step, b)); });
        barrier.arrive();
    };

    for (int64_t walked = grid.first; walked < grid.last; ++walked) {
        const bool last = walked == a.seq.T;
        if (last && !a.needs_dh0) break;
        if (!last) step.at(a.seq.T - 1 - walked);
        const int64_t b1 = last ? share.b1 : share.end(a.seq.rows(step.t));
        if (grid.phases & 1) {
            product.run(SentWork<S>(step, last), share.b0, b1, barrier);
            barrier.arrive();
        }
        if (grid.phases & 2) each_row(b1, [&](const auto& row) { last ? row.last() : row.first(); });
        if (last || !a.two_products) continue;
        if (grid.phases & 4) {
            Product<Tile<S, 1>, 1, Device> second(dev, grid, share.part, a.R, false);
            second.run(LeftProduct<S, SecondProduct>{{step}}, share.b0, b1, barrier);
            barrier.arrive();
        }
        if (grid.phases & 8) each_row(b1, [](const auto& row) { row.second(); });
    }
}

}  // namespace fused_rnn::cuda
