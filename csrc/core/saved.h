// What a forward pass keeps for the backward, and where. Plain data, as in sequence.h.
#pragma once
#include "variant.h"

namespace fused_rnn {

// Numbers are part of the op contract (docs/design.md).
enum Save : int64_t {
    kSaveNothing = 0,
    kSaveAll = 1,
    kSaveStates = 2,  // what the gates can be rebuilt from beside y, by the products of the forward pass
    kSaveCount = 3,
};

// Vectors of H: LSTM i f g o, or f g o; GRU r z n (W_hn h + b_hn), or r z n; RNN none, but with zoneout the h that a step would
// leave without. Then, to be normalised, both products as they were.
constexpr int64_t saved_activations_of(int64_t cell, Variant v = {}) {
    return is_lstm(cell) ? gates_of(cell, v) : is_gru(cell) ? (v.reset_before ? 3 : 4) : v.zoneout_h > 0;
}
constexpr int64_t saved_gates_of(int64_t cell, Variant v = {}) {
    return saved_activations_of(cell, v) + (v.layer_norm ? 2 * gates_of(cell, v) : 0);
}
// Vectors of H a row; an LSTM's c is the last. (h is in y.)
constexpr int64_t saved_of(int64_t cell, int64_t save, Variant v = {}) {
    return (save == kSaveStates ? 0 : saved_gates_of(cell, v)) + is_lstm(cell);
}

// One direction's. S is the storage type, const in the backward pass.
template <class S>
struct Saved {
    S* gates;  // of row `first` and on, ld_gates apart; null: not kept
    int64_t first;
    int64_t ld_gates;
    S* states;  // c, or else h, of row 0 and on, ld_states apart; null: not kept, as other cells' h going forward
    int64_t ld_states;

    constexpr S* gates_of(int64_t n) const { return gates + (n - first) * ld_gates; }
    constexpr S* state_of(int64_t n) const { return states + n * ld_states; }
};

// Rows of `vectors` vectors of H at `data`: gates, an LSTM's c, or both. The state of other cells is their h, at `h` in rows
// `ld_h` apart; null where it is written only.
template <class S>
constexpr Saved<S> saved_rows(int64_t cell, S* data, int64_t vectors, int64_t H, S* h = nullptr, int64_t ld_h = 0) {
    const int64_t gates = vectors - is_lstm(cell), ld = vectors * H;
    S* const of_gates = gates > 0 ? data : nullptr;
    if (is_lstm(cell)) return {of_gates, 0, ld, data + gates * H, ld};
    return {of_gates, 0, ld, h, ld_h};
}

}  // namespace fused_rnn
