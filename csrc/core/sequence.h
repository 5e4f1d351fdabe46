// What every time loop knows: storage types, cells, which step has which rows. Plain data; no torch, no intrinsics, no std
// templates. constexpr functions serve device code too.
#pragma once
#include <cstdint>

namespace fused_rnn {

// Storage-only types: kernels compute in float and convert at loads and stores.
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

// The type that sums and states of a storage type are kept in.
template <class S>
struct ComputeOf {
    using type = float;
};
template <>
struct ComputeOf<double> {
    using type = double;
};
template <class S>
using ComputeType = typename ComputeOf<S>::type;

constexpr int64_t kMaxDirections = 2;

// Numbers are part of the op contract (docs/design.md); the linear forms exist for exact tests.
enum Cell : int64_t {
    kLstm = 0,
    kGru = 1,
    kRnnTanh = 2,
    kRnnRelu = 3,
    kLstmLinear = 4,
    kGruLinear = 5,
    kRnnLinear = 6,
    kCellCount = 7,
};

constexpr bool is_lstm(int64_t cell) { return cell == kLstm || cell == kLstmLinear; }
constexpr bool is_gru(int64_t cell) { return cell == kGru || cell == kGruLinear; }
constexpr int64_t gates_of(int64_t cell) { return is_lstm(cell) ? 4 : is_gru(cell) ? 3 : 1; }

// T steps of at most B rows. Packed: step t has batch_sizes[t] rows, beginning at row offsets[t];
// padded (null): every step has B rows.
struct Sequence {
    int64_t T;
    int64_t B;
    const int64_t* batch_sizes;
    const int64_t* offsets;

    constexpr int64_t rows(int64_t t) const {
        if (t < 0 || t >= T) return 0;
        return batch_sizes ? batch_sizes[t] : B;
    }
    constexpr int64_t row(int64_t t) const { return offsets ? offsets[t] : t * B; }
    // The step that a direction begins with.
    constexpr int64_t first(bool reverse) const { return reverse ? T - 1 : 0; }
};

}  // namespace fused_rnn
