// One direction of a layer on packed weights: a piece of time at a time, gx = x W_ih^T of the rows a thread has, then the
// time loop over them. A thread that shares no rows with others needs nobody from the first step to the last, and finds
// its gx in its own cache.
#pragma once
#include <algorithm>
#include <type_traits>

#include "kernels.h"

namespace fused_rnn::cpu {

constexpr int64_t kMaxPiece = 512;  // steps

// Rows of x are multiplied as Left (F or S), with weights packed as Panel (F, or bf16 for matrix tiles).
template <class F, class S, class Left, class Panel>
struct ForwardWalk {
    ForwardArgs<F, S> args;  // but for gx
    decltype(Kernels<F, S>::forward_loop) loop;
    MultiplyPanels<Left, Panel, F> multiply;
    void (*copy)(const S* from, int64_t ld_from, int64_t rows, int64_t columns, Left* to, int64_t ld_to);
    const S* x;  // row b of step t at t * x_step + b * x_row; packed: row n at n * x_row
    int64_t x_step, x_row;
    int64_t I;
    const Panel* w_ih;  // packed plainly, transposed
    PanelShape w_ih_shape;
    int64_t piece;                    // steps, up to kMaxPiece
    F* gx;                            // [piece * B, ld_gx], for all threads
    Left* rows;                       // [piece * B, I], for rows of x that are not one matrix of Left
    const Progress* below = nullptr;  // of whoever writes x, a piece at a time; null: x is there
    Progress* own = nullptr;          // null: nobody waits for it

    void run(const Slice& slice) const {
        int64_t first[kMaxPiece + 1];  // row of gx at which each step of a piece begins, of this slice's rows alone
        ForwardArgs<F, S> a = args;
        F* const own_gx = gx + slice.b0 * piece * a.ld_gx;
        a.gx = own_gx;
        a.gx_first = first;
        a.gx_b0 = slice.b0;
        const int64_t T = a.seq.T;
        int32_t pieces = 0;
        for (int64_t done = 0; done < T; done += piece) {
            ++pieces;
            const int64_t steps = std::min(piece, T - done);
            a.gx_t0 = a.reverse ? T - done - steps : done;
            first[0] = 0;
            for (int64_t k = 0; k < steps; ++k) first[k + 1] = first[k] + rows_at(a.gx_t0 + k, slice);
            if (below) progress_wait(below, pieces);
            const Matrix left = matrix(a.gx_t0, steps, first, slice);
            const int64_t panels = w_ih_shape.count();
            multiply(left.data, left.row, first[steps], w_ih, w_ih_shape, I, panels * slice.part / slice.parts,
                     panels * (slice.part + 1) / slice.parts, own_gx, a.ld_gx, false);
            if (slice.barrier) barrier_wait(slice.barrier);
            loop(a, a.gx_t0, a.gx_t0 + steps, slice);
            if (own) progress_reach(own, pieces);
        }
    }

    // Whether all rows of any steps lie as one matrix of Left, and need no memory to be gathered in.
    static bool is_matrix(const Sequence& seq, int64_t x_step, int64_t x_row) {
        return std::is_same_v<Left, S> && (seq.batch_sizes || seq.T == 1 || x_step == seq.B * x_row);
    }

  private:
    struct Matrix {
        const Left* data;
        int64_t row;
    };

    int64_t rows_at(int64_t t, const Slice& slice) const {
        return std::max<int64_t>(0, std::min(slice.b1, args.seq.rows(t)) - slice.b0);
    }
    const S* x_at(int64_t t, int64_t b) const {
        return x + (args.seq.batch_sizes ? (args.seq.row(t) + b) * x_row : t * x_step + b * x_row);
    }

    // x of the slice's rows in `steps` steps from t0 on.
    Matrix matrix(int64_t t0, int64_t steps, const int64_t* first, const Slice& slice) const {
        if constexpr (std::is_same_v<Left, S>) {
            if ((slice.b1 - slice.b0 == args.seq.B && is_matrix(args.seq, x_step, x_row)) || steps == 1)
                return {x_at(t0, slice.b0), x_row};
        }
        Left* const to = rows + slice.b0 * piece * I;
        for (int64_t k = steps * slice.part / slice.parts; k < steps * (slice.part + 1) / slice.parts; ++k)
            copy(x_at(t0 + k, slice.b0), x_row, first[k + 1] - first[k], I, to + first[k] * I, I);
        if (slice.barrier) barrier_wait(slice.barrier);
        return {to, I};
    }
};

}  // namespace fused_rnn::cpu
