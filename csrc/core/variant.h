// What a cell does otherwise than torch's. Plain data, as in sequence.h; docs/variants.md has the equations.
#pragma once
#include "sequence.h"

namespace fused_rnn {

// Numbers are part of the op contract (docs/design.md).
enum class Activation : uint8_t {
    kOwn = 0,  // what torch's cell has there
    kSigmoid = 1,
    kHardSigmoid = 2,
    kTanh = 3,
    kHardTanh = 4,
    kRelu = 5,
    kSoftsign = 6,
    kIdentity = 7,
    kCount = 8,
};

struct Variant {
    Activation gate;    // of i, f, o; r, z
    Activation state;   // of g and c; n; an RNN's h
    bool peephole;      // LSTM: i and f look at c, o at the new c
    bool coupled;       // LSTM: i = 1 - f, and nothing else is of i
    bool reset_before;  // GRU: r multiplies h, not W_hn h + b_hn
    bool layer_norm;    // both products are normalised, row by row, and an LSTM's c for its h

    // Whether it is torch's cell, which has kernels of its own.
    constexpr bool plain() const {
        return gate == Activation::kOwn && state == Activation::kOwn && !peephole && !coupled && !reset_before &&
               !layer_norm;
    }
};

constexpr int64_t gates_of(int64_t cell, Variant v) { return v.coupled ? 3 : gates_of(cell); }
// Those that a product with h itself is of: all, or r and z, n having one with r h afterwards.
constexpr int64_t gates_of_h(int64_t cell, Variant v) { return v.reset_before ? 2 : gates_of(cell, v); }
// Those that lie side by side, unit by unit, where a step multiplies: none where it looks at whole rows.
constexpr int64_t panel_gates(int64_t cell, Variant v) { return v.layer_norm ? 1 : gates_of_h(cell, v); }
// Whether b_ih and b_hh have gradients of their own, as r multiplies W_hn h + b_hn; else the biases may be added.
constexpr bool biases_apart(int64_t cell, Variant v) { return is_gru(cell) && !v.reset_before; }
// Whether the products with x and with h have.
constexpr bool hidden_apart(int64_t cell, Variant v) { return biases_apart(cell, v) || v.layer_norm; }

// The same with the activations that the cell itself has; plain stays plain. The linear cells are such variants.
constexpr Variant resolved(int64_t cell, Variant v) {
    const bool linear = cell == kLstmLinear || cell == kGruLinear || cell == kRnnLinear;
    if (v.plain() && !linear) return v;
    if (v.gate == Activation::kOwn) v.gate = linear ? Activation::kIdentity : Activation::kSigmoid;
    if (v.state == Activation::kOwn) {
        v.state = linear ? Activation::kIdentity : cell == kRnnRelu ? Activation::kRelu : Activation::kTanh;
    }
    return v;
}

constexpr double kNormEpsilon = 1e-5;  // torch.nn.LayerNorm's

}  // namespace fused_rnn
