// The forward pass of a layer: for each piece of time, gx = x W_ih^T, then the time loop over it; few steps walk on unpacked
// weights.
#pragma once
#include <algorithm>

#include "cpu_first_step.h"
#include "cpu_norm.h"
#include "cpu_regular.h"
#include "cpu_reset.h"
#include "cpu_walk.h"
#include "ops.h"

namespace fused_rnn {

// gx of a thread's piece of time stays within this, so that the loop finds it near beside all else that a step touches; at least
// kForwardRows rows keep the product efficient.
constexpr int64_t kForwardBytes = 1 << 18;
constexpr int64_t kForwardRows = 96;
// Recurrent weights that leave room for it. Past these each piece reads them anew: it has twice the rows.
constexpr int64_t kNearBytes = 1 << 20;

template <class F, class S>
struct ForwardDirection {
    Buffer<F> h[2], c, h_full, z, bias, gx, hg, mask, h_masked[2];
    Compute<F, S> h0;
    Compute<F, S> w_ch;
    NormWeights<F, S> norm;
    Weight<F, S> w_ih, w_hh, w_hr;
    Packed<F, S> packed_ih, packed_hh, packed_hr;
    Buffer<F> x_rows;
    ResetState<F, S> reset;
    cpu::ForwardArgs<F, S> args{};
};

template <class F, class S>
class ForwardPass {
  public:
    ForwardPass(const Layer& layer, const LayerArgs& in, const LayerOutputs& out, bool split_f32)
        : layer_(layer), pool_(torch_pool()), k_(cpu::kernels<F, S>()), x_(k_, layer) {
        tiles_ = tiles_for<F, S>(layer, split_f32);
        loop_tiles_ = loop_tiles_for<F, S>(layer, tiles_);
        direct_ = !loop_tiles_ && walks_unpacked(layer) && layer.N < kRowsWorthPacking;
        for (int64_t d = 0; d < layer.D; ++d) prepare(d, in, out);
    }

    void run(const LayerOutputs& out) {
        if (direct_) {
            walk_unpacked();
        } else {
            const cpu::LoopSize loop = size();
            cut(cpu::divide_loop(loop, cpu::threads_for(loop, pool_)).row_parts, layer_.T);
            cpu::run_loop(pool_, loop, tiles_ ? team_work<S, bf16> : team_work<F, F>, this);
        }
        finish(out);
    }

    bool packs() const { return !direct_; }
    const cpu::Pool& pool() const { return pool_; }
    cpu::LoopSize size() const {
        return loop_size<S>(layer_, dir_[0].packed_hh, dir_[0].packed_hr, layer_.T, loop_tiles_ != nullptr);
    }
    // Into pieces of time.
    void cut(int64_t row_parts, int64_t most_steps) {
        const Layer& l = layer_;
        const int64_t row_bytes = dir_[0].args.ld_gx * static_cast<int64_t>(sizeof(F));
        const bool near = size().weight_bytes <= kNearBytes;
        const int64_t rows = (near ? std::max(kForwardRows, kForwardBytes / row_bytes) : 2 * kForwardRows) * row_parts;
        piece_ = std::min({most_steps, std::max<int64_t>(1, rows / l.B), cpu::kMaxPiece});
        for (int64_t d = 0; d < l.D; ++d) {
            dir_[d].gx = Buffer<F>(piece_ * l.B * dir_[d].args.ld_gx);
            // Of each thread's own rows, which are no matrix. (Of planned threads some may not come: the team then
            // shares differently.)
            dir_[d].x_rows = Buffer<F>(piece_ * l.B * l.I);
        }
    }

    // One of several layers alike, of one direction, that threads walk side by side, in pieces of the same steps.
    void cut_side_by_side() { cut(1, cpu::steps_side_by_side(layer_.T, layer_.B)); }
    // In one thread, each piece after the same of the layer below (null: x is there), telling of it.
    void run_beside(const cpu::Progress* below, cpu::Progress* own) const {
        const cpu::Slice all{0, layer_.B, 0, 1, nullptr};
        const auto run = [&](auto walk) {
            walk.below = below;
            walk.own = own;
            walk.run(all);
        };
        tiles_ ? run(walk_of<S, bf16>(0)) : run(walk_of<F, F>(0));
    }

    void finish(const LayerOutputs& out) {
        if (is_lstm(layer_.cell)) {
            S* cn = mutable_data_of<S>(out.cn);
            for (int64_t d = 0; d < layer_.D; ++d)
                k_.copy_out(dir_[d].c.data(), dir_[d].args.ld_c, layer_.B, layer_.H, cn + d * layer_.B * layer_.H,
                            layer_.H);
        }
    }

  private:
    template <class Left, class Panel>
    static void team_work(void* context, const cpu::Share& share) {
        const auto& self = *static_cast<const ForwardPass*>(context);
        for (int64_t d = 0; d < self.layer_.D; ++d)
            if (share.direction < 0 || share.direction == d) self.template walk_of<Left, Panel>(d).run(share.slice);
    }

    template <class Left, class Panel>
    cpu::ForwardWalk<F, S, Left, Panel> walk_of(int64_t d) const {
        const ForwardDirection<F, S>& from = dir_[d];
        const Layer& l = layer_;
        return forward_walk<Left, Panel>(k_, tiles_, loop_tiles_, from.args, data_of<S>(l.x), l.x_step, l.x_row, l.I,
                                         from.packed_ih, piece_, from.gx, from.x_rows);
    }

    void prepare(int64_t d, const LayerArgs& in, const LayerOutputs& out) {
        const Layer& l = layer_;
        ForwardDirection<F, S>& to = dir_[d];
        cpu::ForwardArgs<F, S>& a = to.args;
        const DirectionWeights& w = l.weights[d];
        if (direct_) {
            to.w_ih = Weight<F, S>(pool_, k_, *w.w_ih);
            to.w_hh = Weight<F, S>(pool_, k_, *w.w_hh);
            if (l.two_products) to.w_hr = Weight<F, S>(pool_, k_, *w.w_hr);
        } else {
            to.packed_hh = Packed<F, S>(pool_, k_, loop_tiles_, *w.w_hh, panel_gates(l.cell, l.variant), true);
            if (l.two_products) to.packed_hr = Packed<F, S>(pool_, k_, loop_tiles_, *w.w_hr, 1, true);
            to.packed_ih = Packed<F, S>(pool_, k_, tiles_, *w.w_ih, 1, true);
        }
        to.bias = bias_buffer(k_, l, w);
        to.mask = recurrent_mask(k_, l, d);
        if (l.T == 1 && !l.begins && !to.mask) {  // h0 is only read
            to.h0 = Compute<F, S>(k_, in.h0, l.D * l.B, l.R);
            a.ld_h = l.R;
            a.h[0] = const_cast<F*>(to.h0.data()) + d * l.B * l.R;
            to.h[1] = Buffer<F>(l.B * l.R);
        } else {
            a.ld_h = cpu::padded(l.R);
            to.h[0] = state_buffer(k_, in.h0, d, l.B, l.R);
            a.h[0] = to.h[0].data();
            // Rows of a packed sequence that begin late must find h0 in either of the double buffer.
            to.h[1] = l.packed ? state_buffer(k_, in.h0, d, l.B, l.R) : Buffer<F>(to.h[0].count());
        }
        if (is_lstm(l.cell)) to.c = state_buffer(k_, *in.c0, d, l.B, l.H);
        if (l.two_products) to.h_full = Buffer<F>(l.B * cpu::padded(l.H));
        if (l.variant.reset_before) to.z = Buffer<F>(to.h_full.count());

        describe(a, l, d);
        a.ld_gx = direct_ ? l.G * l.H : cpu::padded(l.G * l.H);
        a.bias = to.bias.data();
        a.bias_hn = bias_hn(l.cell, l.H, to.bias);
        to.w_ch = peepholes(k_, w);
        a.w_ch = to.w_ch.data();
        to.norm = NormWeights<F, S>(k_, l, w);
        a.norm = to.norm.args();
        if (l.variant.layer_norm && !direct_) to.hg = Buffer<F>(l.B * a.ld_gx);
        a.hg = to.hg.data();
        a.h[1] = to.h[1].data();
        a.seeds = seeds_of(l, d);
        a.mask = to.mask.data();
        a.c = to.c.data();
        a.ld_c = cpu::padded(l.H);
        a.h_full = to.h_full.data();
        a.z = to.z.data();
        a.y = mutable_data_of<S>(out.y) + d * l.R;
        a.ld_y = l.D * l.R;
        a.saved = saved_direction<S>(l, out.saved, d);
        a.hn = mutable_data_of<S>(out.hn) + d * l.B * l.R;
        a.w_hh = to.packed_hh.panels();
        a.w_hr = to.packed_hr.panels();
        to.reset = ResetState<F, S>(k_, l, in, d);
        a.reset = to.reset.args();
        reset_first(a);
        a.from_zero = starts_from_zeros(l, in.h0, d) && silenced_by_zeros<F, S>(pool_, k_, *w.w_hh);
        if (to.mask) mask_first(to);
    }

    // What W_hh sees of the state before a row's first step: it may lie in either of the double buffer.
    void mask_first(ForwardDirection<F, S>& to) {
        cpu::ForwardArgs<F, S>& a = to.args;
        for (int i = 0; i < 2; ++i) {
            to.h_masked[i] = Buffer<F>(layer_.B * a.ld_h);
            a.h_masked[i] = to.h_masked[i].data();
            if (i == 0 || layer_.packed)
                k_.mask_rows(a.h[i], a.ld_h, a.mask, a.ld_h, layer_.B, a.ld_h, a.h_masked[i], a.ld_h, false);
        }
    }

    // Few steps: products straight from the weights as they lie.
    void walk_unpacked() {
        const int64_t row_bytes = layer_.G * layer_.H * static_cast<int64_t>(sizeof(F));
        const auto bounds = layer_.chunks(std::max(2 * kForwardRows, 2 * kForwardBytes / row_bytes));
        const size_t pieces = bounds.size() - 1;
        x_.reserve(layer_.most_rows(bounds));
        for (size_t piece = 0; piece < pieces; ++piece) {
            for (int64_t d = 0; d < layer_.D; ++d) {
                const size_t k = d == 0 ? piece : pieces - 1 - piece;
                walk_unpacked(d, bounds[k], bounds[k + 1]);
            }
        }
    }

    void walk_unpacked(int64_t d, int64_t t0, int64_t t1) {
        const Layer& l = layer_;
        ForwardDirection<F, S>& to = dir_[d];
        cpu::ForwardArgs<F, S>& a = to.args;
        const int64_t GH = l.G * l.H, of_h = gates_of_h(l.cell, l.variant) * l.H, count = l.rows_between(t0, t1);
        grow(to.gx, count * GH);
        a.gx = to.gx.data();
        a.gx_row = l.seq.row(t0);
        const Matrix<const F> x = x_.rows(cpu::Crew(pool_), t0, t1);
        to.w_ih.dot(x.data, x.row, count, to.gx.data(), GH, false);
        if (!products_) products_ = Buffer<F>(l.B * std::max(GH, l.R));
        F* hg = products_.data();
        for (int64_t step = t0; step < t1; ++step) {
            const int64_t t = a.reverse ? t0 + t1 - 1 - step : step;
            const int next = a.next(t);
            const int64_t rows = l.seq.rows(t);
            if (a.multiplies(t)) {
                to.w_hh.dot(a.left(1 - next), a.ld_h, rows, hg, of_h, false);
            } else {
                std::fill_n(hg, rows * of_h, F(0));
            }
            pool_.split(rows, rows * l.H >> 13, [&](int64_t b0, int64_t b1) {
                k_.forward_rows(a, t, b0, b1, 0, l.H, hg + b0 * of_h, of_h, l.H, 1, next);
            });
            if (!l.two_products) continue;
            to.w_hr.dot(a.h_full, a.ld_c, rows, hg, l.R, false);
            const int64_t final_from = a.final_from(t);
            k_.second_rows(a, t, 0, rows, 0, l.R, hg, l.R, next, final_from);
        }
    }

    const Layer& layer_;
    const cpu::Pool pool_;
    const cpu::Kernels<F, S>& k_;
    InputRows<F, S> x_;
    bool direct_;
    const cpu::TileKernels<F, S>*tiles_, *loop_tiles_;  // around the loop and in it
    ForwardDirection<F, S> dir_[kMaxDirections];
    Buffer<F> products_;
    int64_t piece_ = 0;
};

}  // namespace fused_rnn
