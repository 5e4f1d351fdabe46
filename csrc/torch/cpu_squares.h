// What a backward loop has told of its gradients (csrc/cpu/squares-inl.h), as `layer_backward` returns it.
#pragma once
#include <algorithm>
#include <utility>

#include "../cpu/loop_args.h"

namespace fused_rnn {

// Those of one direction: kind k of row n goes to out[k * stride + n]. Kind after kind, each along the rows.
template <class F, class S>
struct Squares {
    const cpu::BackwardArgs<F, S>& a;
    double* const out;
    const int64_t stride;

    void of_steps(int64_t t0, int64_t t1) const {
        const bool cells = is_lstm(a.cell), clips = a.variant.clips();
        const int64_t from = a.seq.row(t0), end = a.seq.row(t1 - 1) + a.seq.rows(t1 - 1);
        add_up(kSquareH, from, end);
        add_up(kSquareLaterH, from, end);
        for (const Square of_c : {kSquareC, kSquareLaterC}) cells ? add_up(of_c, from, end) : zero(of_c, from, end);
        // Where nothing was clipped, what was sent arrived; where nothing goes past W_hh, all of it came through.
        for (const auto& [sent, came] :
             {std::pair{kSquareSentH, kSquareLaterH}, std::pair{kSquareSentC, kSquareLaterC}})
            clips ? add_up(sent, from, end) : copy(sent, came, from, end);
        a.kept ? add_up(kSquareKept, from, end) : zero(kSquareKept, from, end);
        a.kept ? add_up(kSquareRecurrent, from, end) : copy(kSquareRecurrent, kSquareSentH, from, end);
        for (int64_t t = t0; t < t1; ++t) {  // rows that no step after sends anything
            const int64_t rows = a.seq.rows(t), first = a.seq.row(t);
            const int64_t going_on = std::min(rows, a.seq.rows(a.reverse ? t - 1 : t + 1));
            if (going_on == rows) continue;
            for (const Square sent : {kSquareSentH, kSquareSentC, kSquareKept, kSquareRecurrent})
                zero(sent, first + going_on, first + rows);
        }
    }

  private:
    double* of(Square kind) const { return out + kind * stride; }
    void zero(Square kind, int64_t from, int64_t end) const { std::fill(of(kind) + from, of(kind) + end, 0.0); }
    void copy(Square kind, Square same, int64_t from, int64_t end) const {
        std::copy(of(same) + from, of(same) + end, of(kind) + from);
    }
    void add_up(Square kind, int64_t from, int64_t end) const {
        const int64_t row = a.ld_squares;
        for (int64_t n = from; n < end; ++n) {
            double sum = 0;
            for (int64_t at = kind; at < row; at += kSquareCount) sum += a.squares[n * row + at];
            of(kind)[n] = sum;
        }
    }
};

}  // namespace fused_rnn
