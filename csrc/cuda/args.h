// What the kernels of one layer get, as plain data passed by value: device pointers, sizes. No torch, no CUDA headers.
//
// S is the storage type; sums and states are kept in ComputeType<S>. Every operand of a
// product is in S: the previous h is read from y, the gate gradients of the later step from dg.
#pragma once
#include <cstdint>

#include "../core/saved.h"

namespace fused_rnn::cuda {

constexpr int kVectorBytes = 16;  // of an asynchronous copy

// Where the threads of a block meet. A GPU makes no difference; tests leave out one at a time, and must notice.
enum class Sync : int { kRows, kStaged, kConsumed, kArrive, kAwait };

// Row of dg: an LSTM's and an RNN's gates; a GRU's r z n and then the hidden side of n.
constexpr int64_t gradient_blocks(int64_t cell) { return is_gru(cell) ? 4 : gates_of(cell); }
// Where column k of the hidden side's gates, [G*H], lies in it.
constexpr int64_t hidden_column(int64_t cell, int64_t H, int64_t k) { return is_gru(cell) && k >= 2 * H ? k + H : k; }

template <class S>
struct ForwardArgs {
    Sequence seq;  // its arrays on the device
    int64_t cell;
    int64_t D, N, H, R;
    bool projected;
    bool first_copies16,
        second_copies16;  // whether rows of h and w_hh (h_full and w_hr) are laid out for 16-byte copies
    const ComputeType<S>* gx[kMaxDirections];  // [N, G*H], x W_ih^T
    const S* w_hh[kMaxDirections];             // [G*H, R]
    const S* w_hr[kMaxDirections];             // [P, H], projection only
    const S* b_ih[kMaxDirections];             // [G*H] or null
    const S* b_hh[kMaxDirections];
    const S* h0;            // [D, B, R]
    const S* c0;            // [D, B, H], LSTM
    const bool* reset;      // [N], where an episode begins, or null
    bool reset_initial;     // from h0 and c0, else from zero
    ComputeType<S>* carry;  // [D, B, H]: an LSTM's c, a GRU's h, as they go from step to step
    S* h_full;              // [D, B, H], projection only: o tanh(c) before W_hr
    S* y;                   // [N, D*R]
    S* hn;                  // [D, B, R]
    S* cn;                  // [D, B, H], LSTM
    Saved<S> saved[kMaxDirections];
    unsigned* arrivals;  // one zero for each group of blocks
};

template <class S>
struct BackwardArgs {
    Sequence seq;
    int64_t cell;
    int64_t D, N, H, R;
    bool projected;
    bool needs_dh0;
    bool first_copies16, second_copies16;
    const S* w_hh_t[kMaxDirections];  // [R, G*H], transposed
    const S* w_hr_t[kMaxDirections];  // [H, P]
    const S* h0;
    const S* c0;
    const bool* reset;
    bool reset_initial;
    // [D, B, H], zero at first, where episodes begin from the initial state: what all of a row's send to c0, or to a GRU's h0
    // beside the product.
    ComputeType<S>* sums;
    Saved<const S> saved[kMaxDirections];
    const S* dy;            // [N, D*R] or null
    const S* dhn;           // [D, B, R] or null
    const S* dcn;           // [D, B, H] or null
    const S* dcells;        // [N, D*H] or null: an LSTM's gradients of c of every step
    ComputeType<S>* carry;  // [D, B, H]: dc of an LSTM; of a GRU the part of dh that passes by the gates
    S* dg[kMaxDirections];  // [N, blocks*H]
    S* dr[kMaxDirections];  // [N, P], projection only: the whole gradient of the projected h
    S* dh0;                 // [D, B, R], if needed
    S* dc0;                 // [D, B, H], LSTM
    unsigned* arrivals;
};

// How a launch shares a loop among blocks, and which part of it it runs (plan.h fills it).
struct Grid {
    int parts;            // blocks that share the units of one slice of the batch
    bool meets;           // whether they meet at its barrier, or each launch ends before they would
    int slices;           // of the batch, for each direction
    int64_t slice_rows;   // rows of a slice
    int teams;            // of a block: each computes its own units of the block's tile
    int chunk;            // elements of the summed dimension that are staged at once
    bool resident;        // the weights of the first phase stay in shared memory
    int phases;           // bit 0 the first product of a step, bit 1 the second (projection)
    int64_t first, last;  // walked steps; in the backward pass step T gives dh0
};

}  // namespace fused_rnn::cuda
