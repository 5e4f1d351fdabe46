// Register tiles: what one team of threads computes of a step's product, sums of `a` rows (batch) with `w` rows (units, G
// gates each), both in shared memory with the summed dimension contiguous. A thread holds all gates of its cells, so
// that the cell's math follows on registers.
//
// A tile tells: kTeam threads, kRows x kUnits cells, kCells of them a thread's own, kStep (the summed dimension comes in
// multiples of it, filled up with zeros). `w` lies gate by gate, `gate_stride` elements apart.
#pragma once
#include <cstring>

#include "cell_math.h"

namespace fused_rnn::cuda {

// Elements that travel together between shared memory and registers.
template <class S>
struct alignas(kVectorBytes) Vector {
    static constexpr int kCount = kVectorBytes / static_cast<int>(sizeof(S));
    S at[kCount];
};

// Fused multiply-adds, any type. kSplit neighbouring threads share the sum of a cell.
template <class S_, int G, int Rows, int Units, int Split>
struct FmaTile {
    using S = S_;
    using F = ComputeType<S>;
    static constexpr int kRows = Rows, kUnits = Units, kTeam = Rows * Units * Split, kCells = 1;
    static constexpr int kStep = Vector<S>::kCount * Split;

    int lane;
    F sums[G];

    FUSED_RNN_DEVICE explicit FmaTile(int thread) : lane(thread % kTeam) { zero(); }
    FUSED_RNN_DEVICE int row(int) const { return lane / (Units * Split); }
    FUSED_RNN_DEVICE int unit(int) const { return lane / Split % Units; }
    FUSED_RNN_DEVICE bool holds_cells() const { return lane % Split == 0; }
    FUSED_RNN_DEVICE F sum(int, int g) const { return sums[g]; }
    FUSED_RNN_DEVICE void zero() {
        FUSED_RNN_UNROLL()
        for (int g = 0; g < G; ++g) sums[g] = F(0);
    }

    template <class Device>
    FUSED_RNN_DEVICE void add(const Device&, const S* a, int lda, const S* w, int ldw, int gate_stride, int count) {
        using V = Vector<S>;
        const int from = lane % Split * V::kCount;
        a += row(0) * lda + from;
        w += unit(0) * ldw + from;
        FUSED_RNN_UNROLL(2)
        for (int k = 0; k < count; k += kStep) {
            const V left = *reinterpret_cast<const V*>(a + k);
            FUSED_RNN_UNROLL()
            for (int g = 0; g < G; ++g) {
                const V right = *reinterpret_cast<const V*>(w + g * gate_stride + k);
                FUSED_RNN_UNROLL()
                for (int i = 0; i < V::kCount; ++i)
                    sums[g] = std::fma(Device::widen(left.at[i]), Device::widen(right.at[i]), sums[g]);
            }
        }
    }

    // After the last `add`: the shares of a sum come together, in an order that does not change.
    template <class Device>
    FUSED_RNN_DEVICE void complete(const Device& dev) {
        for (int mask = Split / 2; mask > 0; mask /= 2) FUSED_RNN_UNROLL()
        for (int g = 0; g < G; ++g) sums[g] += dev.shuffle_xor(sums[g], mask);
    }
};

// Tensor cores: a team is one warp, 16 rows of the batch by 8 units, the fragments of PTX mma.m16n8k16, or of m16n8k8 for f32,
// which is multiplied as TF32.
template <class S_, int G>
struct MmaTile {
    using S = S_;
    using F = float;
    static constexpr int kWord = 4 / static_cast<int>(sizeof(S));  // elements that a register of a fragment holds
    static constexpr int kRows = 16, kUnits = 8, kTeam = 32, kCells = 4, kStep = 8 * kWord;

    int lane;
    float sums[G][4];

    FUSED_RNN_DEVICE explicit MmaTile(int thread) : lane(thread % kTeam) { zero(); }
    FUSED_RNN_DEVICE int row(int cell) const { return lane / 4 + cell / 2 * 8; }
    FUSED_RNN_DEVICE int unit(int cell) const { return lane % 4 * 2 + cell % 2; }
    FUSED_RNN_DEVICE bool holds_cells() const { return true; }
    FUSED_RNN_DEVICE float sum(int cell, int g) const { return sums[g][cell]; }
    FUSED_RNN_DEVICE void zero() {
        FUSED_RNN_UNROLL()
        for (int g = 0; g < G; ++g) FUSED_RNN_UNROLL()
        for (int i = 0; i < 4; ++i) sums[g][i] = 0.f;
    }

    template <class Device>
    static FUSED_RNN_DEVICE uint32_t word(const Device& dev, const S* at) {
        if constexpr (sizeof(S) == 4) {
            const float factor = dev.tf32(*at);
            uint32_t bits;
            std::memcpy(&bits, &factor, sizeof(bits));
            return bits;
        } else {
            return *reinterpret_cast<const uint32_t*>(at);
        }
    }

    template <class Device>
    FUSED_RNN_DEVICE void add(const Device& dev, const S* a, int lda, const S* w, int ldw, int gate_stride, int count) {
        a += lane / 4 * lda + lane % 4 * kWord;
        w += lane / 4 * ldw + lane % 4 * kWord;
        const S* const below = a + 8 * lda;
        FUSED_RNN_UNROLL(2)
        for (int k = 0; k < count; k += kStep) {
            const int later = k + kStep / 2;
            const uint32_t left[4] = {word(dev, a + k), word(dev, below + k), word(dev, a + later),
                                      word(dev, below + later)};
            FUSED_RNN_UNROLL()
            for (int g = 0; g < G; ++g) {
                const S* column = w + g * gate_stride;
                const uint32_t right[2] = {word(dev, column + k), word(dev, column + later)};
                dev.mma(sums[g], left, right, S{});
            }
        }
    }

    template <class Device>
    FUSED_RNN_DEVICE void complete(const Device&) {}
};

// The tiles that plan.h chooses among.
enum class TileKind : int { kFew = 0, kBatch = 1, kTensor = 2 };

template <class S, int G>
using FewTile = FmaTile<S, G, 2, 4, 16>;
template <class S, int G>
using BatchTile = FmaTile<S, G, 16, 8, 1>;

}  // namespace fused_rnn::cuda
