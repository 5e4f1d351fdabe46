// What one time loop on the CPU needs to know, as plain data: raw pointers, sizes, strides in elements. Shared by every
// instruction set; no torch, no intrinsics, no std templates.
#pragma once
#include "../core/saved.h"
#include "../core/square.h"
#include "../core/variant.h"

namespace fused_rnn::cpu {

// A matrix repacked for the register tiles: panels of `vectors` SIMD vectors of columns, K rows each.
template <class F>
struct Panels {
    const F* data;
    int64_t K;        // rows (the summed dimension)
    int64_t columns;  // real columns in units of H (forward: gates share a unit block)
    int64_t count;    // number of panels
};

// Rows of a batch that are marked; those from `count` on are not.
struct Marks {
    const bool* rows;
    int64_t count;
    bool operator[](int64_t b) const { return b < count && rows[b]; }
};

// Where an episode of a row begins, and the state that it begins from.
template <class F>
struct Reset {
    const bool* begins;  // [N], in the order of x's rows; null: nowhere
    const F* h;          // [B, ld_h], or with ld_h = 0 one row for all
    int64_t ld_h;
    const F* c;  // [B, ld_c] likewise, LSTM
    int64_t ld_c;

    // Rows whose episode begins with step t.
    Marks at(const Sequence& seq, int64_t t) const {
        const int64_t rows = begins ? seq.rows(t) : 0;
        return {rows ? begins + seq.row(t) : nullptr, rows};
    }
};

// Rows whose state is set anew between step t of a loop and the step it walks next, and between the one before and t.
// Two episodes meet between the same two steps in either direction.
template <class Args>
Marks reset_after(const Args& a, int64_t t) {
    if (!a.reverse) return a.reset.at(a.seq, t + 1);
    return t > 0 ? a.reset.at(a.seq, t) : Marks{};
}
template <class Args>
Marks reset_before(const Args& a, int64_t t) {
    return a.reset.at(a.seq, a.reverse ? t + 1 : t);
}

// What scales and shifts the rows that are normalised; null where nothing is.
template <class F>
struct Norm {
    const F *x, *h;        // [G*H], of the products with x and with h
    const F *c, *c_shift;  // [H], of an LSTM's c
};

// Where the sums of squares of a block of units of a row go (squares-inl.h): the strides of kinds, rows and blocks. Of the last
// four kinds a loop tells only what is not one of the others.
struct SquareSums {
    double* at;  // null: not asked for
    int64_t kind, row, block;

    explicit operator bool() const { return at; }
    double* of(Square which, int64_t n, int64_t b) const { return at + which * kind + n * row + b * block; }
};

// One direction of one layer, forward, steps [t0, t1) (walked from t1-1 down when `reverse`).
// F computes, S stores. Row strides are `ld_*`; the last dimension is contiguous everywhere.
template <class F, class S>
struct ForwardArgs {
    Sequence seq;
    int64_t cell;
    Variant variant;  // as resolved() leaves it
    int64_t H;        // units
    int64_t R;        // size of h: P with a projection, H without
    bool reverse;
    bool two_products;  // in a step: with a projection, or in a GRU whose reset gate comes before the product
    const F* gx;        // [rows, ld_gx], x W_ih^T of the sequence's rows from `gx_row` on; or, with `gx_first`,
    int64_t gx_row;
    const int64_t* gx_first;  // of the batch's rows from `gx_b0` on, those of step `gx_t0` + k from row gx_first[k] on
    int64_t gx_t0, gx_b0;
    int64_t ld_gx;
    const F* bias;     // [G*H], what is added outside any product
    const F* bias_hn;  // [H], GRU: inside the reset product, where that comes after
    const F* w_ch;     // [(G-1)*H], peepholes of i (unless coupled), f, o; null: none
    Norm<F> norm;
    F* hg;                 // [B, ld_gx], where a step's product waits to be normalised
    const int64_t* seeds;  // [B], of what zoneout draws; null: it keeps what it does on average
    F* h[2];               // [B, ld_h], double buffer; the step's parity chooses
    int64_t ld_h;
    const F* mask;   // [B, ld_h], of recurrent dropout; null: none
    F* h_masked[2];  // [B, ld_h], what W_hh sees of h then
    F* c;  // [B, ld_c], LSTM cell state, updated in place; to rebuild gates, that of the step before of row gx_row and on
    int64_t ld_c;
    F* h_full;  // [B, ld_c], what the second product takes: o tanh(c), or a GRU's r h; to rebuild gates as c
    F* z;       // [B, ld_c], such a GRU's z, from a step's first half to its second
    S* y;       // [N, ld_y], this direction's columns
    int64_t ld_y;
    Saved<S> saved;
    S* hn;  // [B, R]
    Panels<F> w_hh;
    Panels<F> w_hr;  // of the second product: of a projection, or a GRU's W_hn, which w_hh then lacks
    Reset<F> reset;
    bool from_zero;  // what W_hh sees of the state before the first step is zero, and so is their product

    // What W_hh multiplies.
    const F* left(int of) const { return mask ? h_masked[of] : h[of]; }
    bool multiplies(int64_t t) const { return !from_zero || t != seq.first(reverse); }
    // gx of row 0 of step t.
    const F* gx_at(int64_t t) const {
        return gx + (gx_first ? gx_first[t - gx_t0] - gx_b0 : seq.row(t) - gx_row) * ld_gx;
    }
    // Which of the double buffer step t writes: the parity of walked steps of the whole sequence, so that pieces join.
    int next(int64_t t) const { return static_cast<int>((reverse ? seq.T - 1 - t : t) + 1) & 1; }
    // Rows from here on take their last step in this direction at t, and write their final state.
    int64_t final_from(int64_t t) const { return reverse ? (t == 0 ? 0 : seq.B) : seq.rows(t + 1); }
};

// One direction of one layer, backward, same steps walked the other way.
template <class F, class S>
struct BackwardArgs {
    Sequence seq;
    int64_t cell;
    Variant variant;  // as resolved() leaves it
    int64_t H;
    int64_t R;
    bool reverse;
    bool two_products;
    const S* dy;  // [N, ld_dy], this direction's columns, or null
    int64_t ld_dy;
    const S* dcells;  // [N, ld_dcells], an LSTM's gradients of c of every step, likewise, or null
    int64_t ld_dcells;
    Saved<const S> saved;
    const F* h0;  // [B, ld_h0]
    int64_t ld_h0;
    const F* c0;  // [B, ld_c]
    F* dh;        // [B, ld_dh], gradient of h carried from step to step; begins as dhn, ends as dh0 (without resets)
    int64_t ld_dh;
    F* dc;  // [B, ld_c], same for c
    int64_t ld_c;
    const F* w_ch;  // as forward, all four
    Norm<F> norm;
    const int64_t* seeds;
    const F* mask;  // [B, ld_dh]
    F* norm_sums;   // [B, norm_sums_of()], what NormSums tells of each row of the batch, over its steps
    F* dh_full;     // [B, ld_c], with a projection, to be normalised: the gradient of o tanh(c)
    F* dgx;         // [rows of the chunk, ld_dg], row 0 is sequence row `dg_row`
    F* dgh;         // gradient of the hidden side's pre-activations, where it is another (hidden_apart); else dgx
    int64_t ld_dg;
    F* dr;  // [rows of the chunk, ld_dr], of what the second product gave: projected h, or W_hn (r h) (in dgx)
    int64_t ld_dr;
    F* rh;  // [rows of the chunk, H], to which such a GRU writes r h; null: it is not asked for
    int64_t dg_row;
    // [rows of the chunk, ld_narrowed], to which a loop through matrix tiles writes dgh as it takes it; null: it keeps none.
    bf16* narrowed;
    int64_t ld_narrowed;
    Panels<F> w_hh;
    Panels<F> w_hr;  // as forward
    Reset<F> reset;
    F* dh_reset;  // [B, ld_dh], to which is added what reaches a state set anew; null: it goes nowhere
    F* dc_reset;  // [B, ld_c] likewise
    SquareSums squares;
    F* kept;            // [B, ld_dh], what of dh went past W_hh; null: nothing does, or squares are not asked for
    bool unwanted_dh0;  // nobody asks for what leaves the first step

    // Whether a step leaves in dh what of h went past W_hh, to which the rest is added.
    bool passes_h() const { return is_gru(cell) || variant.zoneout_h > 0; }
    bool sends(int64_t t) const { return !unwanted_dh0 || t != seq.first(reverse); }
    // What a cell's backward reads of the state before row b's first step: an LSTM's c, or else h.
    const F* initial(int64_t b) const { return is_lstm(cell) ? c0 + b * ld_c : h0 + b * ld_h0; }
    // And before the first step of a later episode.
    const F* anew(int64_t b) const { return is_lstm(cell) ? reset.c + b * reset.ld_c : reset.h + b * reset.ld_h; }
};

// Sums over the steps of a row of the batch: the gradients of gains and shifts. No two threads have a row in common, so these
// do not depend on how many there are.
constexpr int64_t norm_sums_of(int64_t cell, Variant v, int64_t H) {
    const int64_t G = gates_of(cell, v), of_lstm = v.peephole ? G + 1 : 2;
    return (3 * G + (is_lstm(cell) ? of_lstm : is_gru(cell) ? G : 0)) * H;
}
template <class F>
struct NormSums {
    F *shift_x, *gain_x, *gain_h;  // [G*H]; a shift is a bias
    F* shift_h;                    // [G*H], GRU
    F *gain_c, *shift_c;           // [H], LSTM
    F* w_ch;                       // [(G-1)*H], LSTM with peepholes

    template <class Args>
    NormSums(const Args& a, int64_t b) {
        const int64_t GH = gates_of(a.cell, a.variant) * a.H;
        shift_x = a.norm_sums + b * norm_sums_of(a.cell, a.variant, a.H);
        gain_x = shift_x + GH;
        gain_h = gain_x + GH;
        shift_h = gain_c = gain_h + GH;
        shift_c = gain_c + a.H;
        w_ch = shift_c + a.H;
    }
};

// The part of a loop one thread works on: rows [b0, b1) of the batch and panels [p0, p1).
// Where several threads share rows, `barrier` is theirs; else null.
struct Barrier;
struct Slice {
    int64_t b0, b1;
    int64_t part, parts;  // this thread's share of the units
    Barrier* barrier;
};

}  // namespace fused_rnn::cpu
