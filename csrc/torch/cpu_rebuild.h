// The gates of a piece of time again, where the forward pass kept states only: its own products and step functions, all
// rows of the piece at once, as the states are known.
#pragma once
#include "cpu_norm.h"
#include "cpu_products.h"

namespace fused_rnn {

// Of one direction, for pieces of up to `most` rows.
template <class F, class S>
class GateRebuild {
  public:
    GateRebuild(By by, const cpu::Pool& pool, const cpu::Kernels<F, S>& k, const cpu::TileKernels<F, S>* tiles,
                const Layer& l, const DirectionWeights& w, int64_t most)
        : k_(k),
          of_x_(by, pool, k, tiles, *w.w_ih, true),
          of_h_(by, pool, k, tiles, *w.w_hh, true),
          x_left_(tiles, most, l.I),
          h_left_(tiles, most, l.R),
          bias_(bias_buffer(k, l, w)),
          hidden_(most * gates_of_h(l.cell, l.variant) * l.H),
          w_ch_(peepholes(k, w)),
          norm_(k, l, w),
          gates_(most * saved_gates_of(l.cell, l.variant) * l.H) {
        args_.cell = l.cell;
        args_.variant = resolved(l.cell, l.variant);
        args_.H = l.H;
        args_.ld_gx = l.G * l.H;
        args_.bias = bias_.data();
        args_.bias_hn = bias_hn(l.cell, l.H, bias_);
        args_.w_ch = w_ch_.data();
        args_.norm = norm_.args();
        args_.saved.ld_gates = saved_gates_of(l.cell, l.variant) * l.H;
        args_.saved.gates = gates_.data();
        if (!l.variant.reset_before) return;
        of_rh_ = Product<F, S>(by, pool, k, tiles, *w.w_hr, true);
        rh_left_ = LeftFactor<F, S>(tiles, most, l.H);
        rh_ = Buffer<F>(most * l.H);
        args_.h_full = rh_.data();
        args_.ld_c = l.H;
    }

    // Of as many rows of the sequence from `first` on as x and h_before (h of the step before) have; with peepholes c_before
    // too. gx [rows, G*H] is working memory. Writes into `saved` where the gates are: they stay there until the next call.
    void operator()(const cpu::Crew& crew, int64_t first, Matrix<const F> x, Matrix<const F> h_before,
                    Matrix<const F> c_before, F* gx, Saved<const S>& saved) {
        const int64_t rows = x.rows;
        x_left_.take(crew, x);
        of_x_(crew, x, x_left_, {gx}, args_.ld_gx, false);
        const int64_t of_h = gates_of_h(args_.cell, args_.variant) * args_.H;
        h_left_.take(crew, h_before);
        of_h_(crew, h_before, h_left_, {hidden_.data()}, of_h, false);
        crew.wait();
        cpu::ForwardArgs<F, S> args = args_;
        args.gx = gx;
        args.gx_row = args.saved.first = first;
        args.h[0] = const_cast<F*>(h_before.data);  // only read, as is c
        args.ld_h = h_before.row;
        args.c = const_cast<F*>(c_before.data);
        if (args.c) args.ld_c = c_before.row;
        crew.split(rows, rows * args.H >> 13, [&](int64_t n0, int64_t n1) {
            k_.rebuild_rows(args, first + n0, first + n1, hidden_.data() + n0 * of_h);
        });
        if (args.h_full) {
            const Matrix<const F> rh{args.h_full, rows, args.H, args.ld_c, 1};
            rh_left_.take(crew, rh);
            of_rh_(crew, rh, rh_left_, {hidden_.data()}, args.H, false);
            crew.wait();
            crew.split(rows, rows * args.H >> 13, [&](int64_t n0, int64_t n1) {
                k_.rebuild_candidates(args, first + n0, first + n1, hidden_.data() + n0 * args.H);
            });
        }
        saved.gates = gates_.data();
        saved.first = first;
        saved.ld_gates = args.saved.ld_gates;
    }

  private:
    const cpu::Kernels<F, S>& k_;
    Product<F, S> of_x_, of_h_, of_rh_;
    LeftFactor<F, S> x_left_, h_left_, rh_left_;
    Buffer<F> bias_, hidden_, rh_;
    Compute<F, S> w_ch_;
    NormWeights<F, S> norm_;
    Buffer<S> gates_;
    cpu::ForwardArgs<F, S> args_{};
};

}  // namespace fused_rnn
