// The gates of a piece of time again, where the forward pass kept states only: its own products and step functions, all
// rows of the piece at once, as the states are known.
#pragma once
#include "cpu_tiles.h"

namespace fused_rnn {

// Of one direction.
template <class F, class S>
class GateRebuild {
  public:
    GateRebuild(const cpu::Pool& pool, const cpu::Kernels<F, S>& k, const cpu::TileKernels<F, S>* tiles, const Layer& l,
                const DirectionWeights& w)
        : pool_(pool),
          k_(k),
          tiles_(tiles),
          of_x_(pool, k, tiles, *w.w_ih),
          of_h_(pool, k, tiles, *w.w_hh),
          bias_(bias_buffer(k, l, w)),
          w_ch_(peepholes(k, w)) {
        args_.cell = l.cell;
        args_.variant = resolved(l.cell, l.variant);
        args_.H = l.H;
        args_.ld_gx = l.G * l.H;
        args_.bias = bias_.data();
        args_.bias_hn = bias_hn(l.cell, l.H, bias_);
        args_.w_ch = w_ch_.data();
        args_.saved.ld_gates = saved_gates_of(l.cell, l.variant) * l.H;
    }

    // Of as many rows of the sequence from `first` on as x and h_before (h of the step before) have; with peepholes c_before
    // too. gx [rows, G*H] is working memory. Writes into `saved` where the gates are: they stay there until the next call.
    void operator()(int64_t first, Matrix<const F> x, Matrix<const F> h_before, Matrix<const F> c_before, F* gx,
                    Saved<const S>& saved) {
        const int64_t rows = x.rows;
        grow(hidden_, rows * args_.ld_gx);
        grow(gates_, rows * args_.saved.ld_gates);
        multiply(of_x_, x, gx);
        multiply(of_h_, h_before, hidden_.data());
        args_.gx = gx;
        args_.gx_row = args_.saved.first = first;
        args_.c = const_cast<F*>(c_before.data);  // only read
        args_.ld_c = c_before.row;
        args_.saved.gates = gates_.data();
        pool_.split(rows, rows * args_.H >> 13, [&](int64_t n0, int64_t n1) {
            k_.rebuild_rows(args_, first + n0, first + n1, hidden_.data() + n0 * args_.ld_gx);
        });
        saved.gates = gates_.data();
        saved.first = first;
        saved.ld_gates = args_.saved.ld_gates;
    }

  private:
    struct Factor {
        Factor(const cpu::Pool& pool, const cpu::Kernels<F, S>& k, const cpu::TileKernels<F, S>* tiles,
               const Tensor& w) {
            if (tiles) {
                in_tiles = TileProduct<F, S>(pool, k, *tiles, w, true);
            } else {
                as_it_lies = Weight<F, S>(pool, k, w);
            }
        }
        Weight<F, S> as_it_lies;
        TileProduct<F, S> in_tiles;
    };

    // to [rows, G*H] = a w^T
    void multiply(Factor& w, Matrix<const F> a, F* to) {
        if (tiles_) return w.in_tiles(a.data, a.row, a.rows, to, args_.ld_gx, false);
        w.as_it_lies.dot(a.data, a.row, a.rows, to, args_.ld_gx, false);
    }

    const cpu::Pool& pool_;
    const cpu::Kernels<F, S>& k_;
    const cpu::TileKernels<F, S>* tiles_;
    Factor of_x_, of_h_;
    Buffer<F> bias_, hidden_;
    Compute<F, S> w_ch_;
    Buffer<S> gates_;
    cpu::ForwardArgs<F, S> args_{};
};

}  // namespace fused_rnn
