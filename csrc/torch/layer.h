// One layer as the ops receive it, checked and taken apart: on whatever device, for forward and backward.
#pragma once
#include <algorithm>

#include "tensors.h"

namespace fused_rnn {

constexpr int64_t kMaxWeights = 10;  // of one direction

struct LayerArgs {
    const Tensor& x;
    const Tensor& h0;
    const OptionalTensor& c0;
    const std::vector<Tensor>& weights;
    const OptionalTensor& batch_sizes;
    int64_t cell;
    const OptionalTensor& reset;
    bool reset_initial;
    const OptionalNumbers& variant;
    const OptionalTensor& seed;
};

// What the numbers of the op's `variant` say (docs/design.md).
Variant parse_variant(const char* op, int64_t cell, const OptionalNumbers& numbers);

// Weights of one direction; null where the layer has none. Of a GRU whose reset gate comes before the product w_hh is r's and
// z's part of W_hh, and w_hr n's: each step multiplies by the one and then by the other, as with a projection.
struct DirectionWeights {
    const Tensor *w_ih, *w_hh, *b_ih = nullptr, *b_hh = nullptr, *w_hr = nullptr, *w_ch = nullptr;
    const Tensor *ln_x = nullptr, *ln_h = nullptr, *ln_c = nullptr, *ln_c_shift = nullptr;
};

struct Layer {
    Layer(const char* op, const LayerArgs& args);

    int64_t cell, G, T, B, I, H, R, D, N;
    Variant variant;
    bool projected, packed;
    bool two_products;      // in a step: W_hh h, and one with what that led to
    int64_t per_direction;  // tensors in `weights` for each direction
    bool biased;
    int64_t at_w_hr, at_w_ch, at_norm;  // among them; of layer normalisation the first
    ScalarType type;
    Sequence seq;
    Tensor x;  // last dimension contiguous
    DirectionWeights weights[kMaxDirections];
    const bool* begins = nullptr;    // [N], where an episode does, on x's device; null: nowhere
    bool reset_initial;              // to h0 and c0, else to zero
    const int64_t* seeds = nullptr;  // [D, B], of what is drawn; null: nothing is

    // Rows of x lie `x_step` apart from step to step and `x_row` from row to row of the batch.
    int64_t x_step, x_row;
    bool x_is_matrix() const { return packed || B == 1 || T == 1 || x_step == B * x_row; }
    // Between rows of x as one matrix of N rows.
    int64_t x_matrix_row() const { return N == 1 ? I : packed || B > 1 ? x_row : x_step; }

    // Rows of the whole sequence in steps [t0, t1).
    int64_t rows_between(int64_t t0, int64_t t1) const { return seq.row(t1 - 1) + seq.rows(t1 - 1) - seq.row(t0); }

    // [t0, t1) pieces of time with about `rows` rows of x each.
    std::vector<int64_t> chunks(int64_t rows) const;
    // Rows of the largest of them.
    int64_t most_rows(const std::vector<int64_t>& bounds) const {
        int64_t most = 0;
        for (size_t k = 0; k + 1 < bounds.size(); ++k) most = std::max(most, rows_between(bounds[k], bounds[k + 1]));
        return most;
    }

  private:
    std::vector<int64_t> offsets_;
    std::optional<Tensor> batch_sizes_, reset_, seed_, parts_[kMaxDirections][2];
};

// What the backward ops are given beside the layer, and which gradients they are asked for.
enum Needs : int64_t { kDx = 1, kDh0 = 2, kDc0 = 4, kFirstWeight = 3 };

struct Gradients {
    const OptionalTensor &dy, &dhn, &dcn;
    const Tensor &y, &saved;
    const OptionalTensor& dcells;
};

void check_gradients(const char* op, const Layer& l, const Gradients& g);

struct LayerOutputs {
    Tensor y, hn, cn, saved;
};

// empty(sizes) makes each of them.
template <class Empty>
Tensor new_y(const Layer& l, const Empty& empty) {
    return l.packed ? empty({l.N, l.D * l.R}) : empty({l.T, l.B, l.D * l.R});
}
// What a forward pass keeps is [D, N, S*H], or [0].
template <class Empty>
LayerOutputs new_outputs(const char* op, const Layer& l, int64_t save, const Empty& empty) {
    FUSED_RNN_CHECK(save >= 0 && save < kSaveCount, op, ": save must be 0, 1 or 2, got ", save);
    return {new_y(l, empty), empty({l.D, l.B, l.R}), is_lstm(l.cell) ? empty({l.D, l.B, l.H}) : empty({0}),
            save == kSaveNothing ? empty({0}) : empty({l.D, l.N, saved_of(l.cell, save, l.variant) * l.H})};
}

// Direction d of what is kept, to write.
template <class S>
Saved<S> saved_direction(const Layer& l, const Tensor& saved, int64_t d) {
    if (!saved.numel()) return {};
    return saved_rows(l.cell, mutable_data_of<S>(saved) + d * l.N * saved.size(2), saved.size(2) / l.H, l.H);
}
// To read, h from y; both are contiguous.
template <class S>
Saved<const S> kept_direction(const Layer& l, const Tensor& saved, const Tensor& y, int64_t d) {
    return saved_rows(l.cell, data_of<S>(saved) + d * l.N * saved.size(2), saved.size(2) / l.H, l.H,
                      data_of<S>(y) + d * l.R, l.D * l.R);
}

// Calls f.template operator()<S>() for the storage type.
template <class Function>
auto by_dtype(const char* op, ScalarType type, const Function& f) {
    switch (type) {
        case ScalarType::Float:
            return f.template operator()<float>();
        case ScalarType::Double:
            return f.template operator()<double>();
        case ScalarType::BFloat16:
            return f.template operator()<bf16>();
        case ScalarType::Half:
            return f.template operator()<f16>();
        default:
            break;
    }
    FUSED_RNN_CHECK(false, op, ": x must be float32, float64, bfloat16 or float16");
    __builtin_unreachable();
}

}  // namespace fused_rnn
