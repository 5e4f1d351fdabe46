// What the loops of a backward tell of their gradients (csrc/cpu/squares-inl.h), as `layer_backward` returns it.
#pragma once
#include <algorithm>
#include <utility>

#include "cpu_layer.h"

namespace fused_rnn {

// Rows of one block of units are told where they belong; of wider ones the blocks are added up after the loop, in order.
class Squares {
  public:
    // `units` in a block.
    Squares(const Layer& l, int64_t units)
        : l_(l),
          blocks_((std::max(l.H, l.R) + units - 1) / units),
          told_(empty({kSquareCount, l.D, l.N}, ScalarType::Double)) {
        const bool all = l.H == l.R && !l.variant.clips();  // the loop tells each of them
        for (int64_t d = 0; d < (blocks_ > 1 ? l.D : 0); ++d) {
            wide_[d] = Buffer<double>(l.N * blocks_ * kSquareCount);
            if (!all) wide_[d].zero();
        }
        if (blocks_ == 1 && !all) std::fill_n(out(0), told_.numel(), 0.0);
    }

    // Of direction d, where its loop tells.
    cpu::SquareSums sums(int64_t d) const {
        if (blocks_ == 1) return {out(d), stride(), 1, 0};
        return {wide_[d].data(), 1, blocks_ * kSquareCount, kSquareCount};
    }

    // [kSquareCount, D, N]
    Tensor told() const { return told_; }

    // Steps [t0, t1) of the direction whose loop had these arguments: what it told, and what it had no need to tell. Kind after
    // kind, each along the rows.
    template <class F, class S>
    void finish(const cpu::BackwardArgs<F, S>& a, int64_t t0, int64_t t1) const {
        const int64_t d = a.reverse ? 1 : 0;
        const auto [from, end] = std::pair{a.seq.row(t0), a.seq.row(t1 - 1) + a.seq.rows(t1 - 1)};
        const Rows rows{*this, d, from, end};
        const bool cells = is_lstm(a.cell), clips = a.variant.clips();
        rows.add_up(kSquareH);
        rows.add_up(kSquareLaterH);
        for (const Square of_c : {kSquareC, kSquareLaterC}) cells ? rows.add_up(of_c) : rows.zero(of_c);
        // Where nothing was clipped, what was sent arrived; where nothing goes past W_hh, all of it came through.
        for (const auto& [sent, came] :
             {std::pair{kSquareSentH, kSquareLaterH}, std::pair{kSquareSentC, kSquareLaterC}})
            clips ? rows.add_up(sent) : rows.copy(sent, came);
        a.kept ? rows.add_up(kSquareKept) : rows.zero(kSquareKept);
        a.kept ? rows.add_up(kSquareRecurrent) : rows.copy(kSquareRecurrent, kSquareSentH);
        for (int64_t t = t0; t < t1; ++t) {  // rows that no step after sends anything
            const int64_t there = a.seq.rows(t), first = a.seq.row(t);
            const int64_t going_on = std::min(there, a.seq.rows(a.reverse ? t - 1 : t + 1));
            if (going_on == there) continue;
            for (const Square sent : {kSquareSentH, kSquareSentC, kSquareKept, kSquareRecurrent})
                Rows{*this, d, first + going_on, first + there}.zero(sent);
        }
    }

  private:
    // Some of a direction.
    struct Rows {
        const Squares& squares;
        const int64_t d, from, end;

        double* of(Square kind) const { return squares.out(d) + kind * squares.stride(); }
        void zero(Square kind) const { std::fill(of(kind) + from, of(kind) + end, 0.0); }
        void copy(Square kind, Square same) const { std::copy(of(same) + from, of(same) + end, of(kind) + from); }
        void add_up(Square kind) const {
            if (squares.blocks_ == 1) return;
            const cpu::SquareSums sums = squares.sums(d);
            for (int64_t n = from; n < end; ++n) {
                double sum = 0;
                for (int64_t block = 0; block < squares.blocks_; ++block) sum += *sums.of(kind, n, block);
                of(kind)[n] = sum;
            }
        }
    };

    double* out(int64_t d) const { return mutable_data_of<double>(told_) + d * l_.N; }
    int64_t stride() const { return l_.D * l_.N; }

    const Layer& l_;
    const int64_t blocks_;
    const Tensor told_;
    Buffer<double> wide_[kMaxDirections];  // [N, blocks, kSquareCount]
};

}  // namespace fused_rnn
