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
enum class Sync : int { kRows, kStaged, kConsumed, kArrive, kAwait, kFilled, kSums, kState, kCells, kParts };

// Row of dg: the gates; where a GRU's n has a hidden side of its own, then that.
constexpr int64_t gradient_blocks(int64_t cell, Variant v = {}) {
    return gates_of(cell, v) + (biases_apart(cell, v) ? 1 : 0);
}
// Gates that a step of the forward pass multiplies. A coupled LSTM's i, which has no weights, is among them.
constexpr int multiplied_gates(int64_t cell, Variant v = {}) {
    return static_cast<int>(v.reset_before ? 2 : gates_of(cell));
}
// Where column k of the hidden side's gates, [G*H], lies in it.
constexpr int64_t hidden_column(int64_t cell, int64_t H, int64_t k) { return is_gru(cell) && k >= 2 * H ? k + H : k; }

// Of cells that are not torch's; the kernels of those look at none of it.
template <class S>
struct Varied {
    bool varies;
    Variant variant;                // with_activations()
    const S* w_ch[kMaxDirections];  // [(G-1)*H], peepholes, or null
    const int64_t* seeds;           // [D, B], of what is drawn, or null
    const ComputeType<S>* mask;     // [D, B, R], of recurrent dropout, or null
};

template <class S>
struct ForwardArgs : Varied<S> {
    Sequence seq;  // its arrays on the device
    int64_t cell;
    int64_t D, N, H, R;
    bool two_products;  // a step's: a projected LSTM's, and those of a GRU whose reset gate comes before
    bool first_copies16,
        second_copies16;  // whether rows of h and w_hh (h_full and w_hr) are laid out for 16-byte copies
    const ComputeType<S>* gx[kMaxDirections];  // [N, G*H], x W_ih^T
    const S* w_hh[kMaxDirections];             // [G*H, R]
    const S* w_hr[kMaxDirections];             // [R, H], second product only
    const S* b_ih[kMaxDirections];             // [G*H] or null
    const S* b_hh[kMaxDirections];
    const S* h0;            // [D, B, R]
    const S* c0;            // [D, B, H], LSTM
    const bool* reset;      // [N], where an episode begins, or null
    bool reset_initial;     // from h0 and c0, else from zero
    ComputeType<S>* carry;  // [D, B, H]: an LSTM's c, a GRU's h, as they go from step to step
    S* h_full;              // [D, B, H], of the second product: o tanh(c) before W_hr, or r h
    ComputeType<S>* z;      // [D, B, H], of a GRU with two products, from the first to the second
    S* seen;                // [2, D, B, R], with a mask: what W_hh sees of h, of even steps and of odd ones
    const S* h0_seen;       // [D, B, R], with a mask: and of h0
    S* y;                   // [N, D*R]
    S* hn;                  // [D, B, R]
    S* cn;                  // [D, B, H], LSTM
    Saved<S> saved[kMaxDirections];
    unsigned* arrivals;  // one zero for each group of blocks
};

template <class S>
struct BackwardArgs : Varied<S> {
    Sequence seq;
    int64_t cell;
    int64_t D, N, H, R;
    int64_t G, width;  // gates that W_hh multiplied; elements of a row of dg
    bool two_products;
    bool needs_dh0;
    bool first_copies16, second_copies16;
    const S* w_hh_t[kMaxDirections];  // [R, G*H], transposed
    const S* w_hr_t[kMaxDirections];  // [H, R]
    const S* h0;
    const S* c0;
    const bool* reset;
    bool reset_initial;
    // Zero at first, where episodes begin from the initial state: what all of a row's send to c0 [D, B, H], and to h0 beside
    // the product [D, B, R].
    ComputeType<S>*sum_c, *sum_h;
    Saved<const S> saved[kMaxDirections];
    const S* dy;             // [N, D*R] or null
    const S* dhn;            // [D, B, R] or null
    const S* dcn;            // [D, B, H] or null
    const S* dcells;         // [N, D*H] or null: an LSTM's gradients of c of every step
    ComputeType<S>* dc;      // [D, B, H], of an LSTM, as it goes from step to step
    ComputeType<S>* passed;  // [D, B, R], of dh what passes by the product: by a GRU's z, by zoneout; null: nothing
    S* dg[kMaxDirections];   // [N, width]
    S* dr[kMaxDirections];   // [N, R], ld_dr apart: the gradient of what the second product gave
    int64_t ld_dr;
    S* dh0;  // [D, B, R], if needed
    S* dc0;  // [D, B, H], LSTM
    // Where squares are asked for (squares.h), else null: what came to h from the step after, before it is clipped [D, N, R]; to an
    // LSTM's c, likewise, and the whole gradient of that [D, N, H].
    ComputeType<S>*sent_h, *sent_c, *whole_c;
    unsigned* arrivals;
};

// Gains and shifts of layer normalisation; null without.
template <class S>
struct Norm {
    const S* x[kMaxDirections];        // [G*H]
    const S* h[kMaxDirections];        // [G*H]
    const S* c[kMaxDirections];        // [H], LSTM
    const S* c_shift[kMaxDirections];  // [H], LSTM
};

// Of loops that look at whole rows between products (rowwise_forward.h, rowwise_backward.h).
template <class S>
struct RowwiseForwardArgs : ForwardArgs<S> {  // gx is normalised
    Norm<S> norm;
    ComputeType<S>* sums;  // [D, B, G*H]: of the first product, until their row is looked at
};

template <class S>
struct RowwiseBackwardArgs : BackwardArgs<S> {  // without sum_c and sum_h
    Norm<S> norm;
    ComputeType<S>* sums;  // [D, B, ld_sums]: of the product at hand, then the gradients that they are part of
    int64_t ld_sums;
    // With layer normalisation: the gradients of h W_hh^T [N, G*H], and, of an LSTM, rows whose sum is the gradient of
    // norm.c and norm.c_shift, [N, 2*H].
    S* dproduct[kMaxDirections];
    ComputeType<S>* dnorm[kMaxDirections];
    // Zero at first, where episodes begin from the initial state: what each sends to h0 [D, B, R] and to c0 [D, B, H].
    ComputeType<S>*to_h0, *to_c0;
};

// How the batch of a loop is shared among blocks (plan.h fills it).
struct Slices {
    int parts;           // blocks that share the units of one slice of the batch
    int slices;          // of the batch, for each direction
    int64_t slice_rows;  // rows of a slice
};

// How a launch shares a loop, and which part of it it runs.
struct Grid : Slices {
    bool meets;           // whether the blocks of a slice meet at its barrier, or each launch ends before they would
    int teams;            // of a block: each computes its own units of the block's tile
    int chunk;            // elements of the summed dimension that are staged at once
    bool resident;        // the weights of the first phase stay in shared memory
    int phases;           // bits: the products of a step, each with the rows that follow it, if any do
    int64_t first, last;  // walked steps; in the backward pass step T gives dh0
};

// How clusters share it: each is all `parts` blocks of a slice.
struct ClusterGrid : Slices {
    int units;  // of a block, whole tiles
};

}  // namespace fused_rnn::cuda
