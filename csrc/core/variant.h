// What a cell does otherwise than torch's. Plain data, as in sequence.h; docs/variants.md has the equations.
#pragma once
#include <cstddef>

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

// Where each stands in the list.
enum VariantPlace : size_t {
    kGatePlace,
    kStatePlace,
    kPeepholePlace,
    kCoupledPlace,
    kResetBeforePlace,
    kLayerNormPlace,
    kRecurrentDropoutPlace,
    kZoneoutHPlace,
    kZoneoutCPlace,
    kClipValuePlace,
    kClipNormPlace,
    kVariantPlaces,
};

struct Variant {
    Activation gate;           // of i, f, o; r, z
    Activation state;          // of g and c; n; an RNN's h
    bool peephole;             // LSTM: i and f look at c, o at the new c
    bool coupled;              // LSTM: i = 1 - f, and nothing else is of i
    bool reset_before;         // GRU: r multiplies h, not W_hn h + b_hn
    bool layer_norm;           // both products are normalised, row by row, and an LSTM's c for its h
    double recurrent_dropout;  // probability that a unit of h is dropped on its way to W_hh, for all steps
    double zoneout_h;          // probability that a unit of h keeps its old value in a step
    double zoneout_c;          // likewise of an LSTM's c
    double clip_value;         // the most that a step sends to a unit of the state before, 0 for no bound
    double clip_norm;          // the same for the norm over the units of a row

    // Whether a unit steps as in torch's cell, which has kernels of its own: what is done to a row of products before and to
    // h between two steps is not theirs.
    constexpr bool plain_units() const {
        return gate == Activation::kOwn && state == Activation::kOwn && !peephole && !coupled && !reset_before &&
               !zones();
    }
    constexpr bool plain() const { return plain_units() && !layer_norm; }
    constexpr bool zones() const { return zoneout_h > 0 || zoneout_c > 0; }
    constexpr bool clips() const { return clip_value > 0 || clip_norm > 0; }
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

constexpr bool is_linear(int64_t cell) { return cell == kLstmLinear || cell == kGruLinear || cell == kRnnLinear; }
// The same with the activations that the cell itself has. The linear cells are such variants.
constexpr Variant with_activations(int64_t cell, Variant v) {
    const bool linear = is_linear(cell);
    if (v.gate == Activation::kOwn) v.gate = linear ? Activation::kIdentity : Activation::kSigmoid;
    if (v.state == Activation::kOwn) {
        v.state = linear ? Activation::kIdentity : cell == kRnnRelu ? Activation::kRelu : Activation::kTanh;
    }
    return v;
}
// Those only where a unit's step varies: plain stays plain.
constexpr Variant resolved(int64_t cell, Variant v) {
    return v.plain_units() && !is_linear(cell) ? v : with_activations(cell, v);
}

constexpr double kNormEpsilon = 1e-5;  // torch.nn.LayerNorm's

}  // namespace fused_rnn
