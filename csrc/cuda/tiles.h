// Register tiles: what one team of threads computes of a step's product, sums of `a` rows (batch) with `w` rows (units, G
// gates each), both in shared memory with the summed dimension contiguous. A thread holds all gates of its cell, so
// that the cell's math follows on registers.
//
// A tile tells: kTeam threads, kRows x kUnits cells, kStep (the summed dimension comes in multiples of it, filled up with
// zeros), kExchange (bytes of shared memory that a team takes to complete its sums). `w` lies gate by gate, `gate_stride`
// elements apart.
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
    static constexpr int kRows = Rows, kUnits = Units, kTeam = Rows * Units * Split;
    static constexpr int kStep = Vector<S>::kCount * Split, kExchange = 0;

    int lane;
    F sums[G];

    FUSED_RNN_DEVICE explicit FmaTile(int thread) : lane(thread % kTeam) { zero(); }
    FUSED_RNN_DEVICE int row() const { return lane / (Units * Split); }
    FUSED_RNN_DEVICE int unit() const { return lane / Split % Units; }
    FUSED_RNN_DEVICE bool holds_cells() const { return lane % Split == 0; }
    FUSED_RNN_DEVICE F sum(int g) const { return sums[g]; }
    FUSED_RNN_DEVICE void zero() {
        FUSED_RNN_UNROLL()
        for (int g = 0; g < G; ++g) sums[g] = F(0);
    }

    template <class Device>
    FUSED_RNN_DEVICE void add(const Device&, const S* a, int lda, const S* w, int ldw, int gate_stride, int count) {
        using V = Vector<S>;
        const int from = lane % Split * V::kCount;
        a += row() * lda + from;
        w += unit() * ldw + from;
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
    FUSED_RNN_DEVICE void complete(const Device& dev, void*) {
        for (int mask = Split / 2; mask > 0; mask /= 2) FUSED_RNN_UNROLL()
        for (int g = 0; g < G; ++g) sums[g] += dev.shuffle_xor(sums[g], mask);
    }
};

// Tensor cores: 16 rows of the batch by 8 units, the fragments of PTX mma.m16n8k16, or of m16n8k8 for f32, which is
// multiplied as TF32. A team is four warps that share the summed dimension: a block has often no more than one tile, of
// which one warp could do little but wait for its own last instruction.
template <class S_, int G>
struct MmaTile {
    using S = S_;
    using F = float;
    static constexpr int kWarps = 4;
    static constexpr int kWord = 4 / static_cast<int>(sizeof(S));  // elements that a register of a fragment holds
    static constexpr int kOwn = 8 * kWord, kStep = kWarps * kOwn;  // of a step: a warp's elements, all
    static constexpr int kRows = 16, kUnits = 8, kTeam = 32 * kWarps;
    static constexpr int kExchange = kWarps * G * kRows * kUnits * static_cast<int>(sizeof(F));
    static constexpr int kChains = G == 1 ? 2 : 1;  // of one gate, sums in turn: an mma would wait for the one before

    int thread, lane;  // of the team, of the warp
    F sums[G];         // of this thread's cell
    F parts[kChains][G][4]{};

    FUSED_RNN_DEVICE explicit MmaTile(int of_block) : thread(of_block % kTeam), lane(of_block % 32) {}
    FUSED_RNN_DEVICE int row() const { return thread / kUnits; }
    FUSED_RNN_DEVICE int unit() const { return thread % kUnits; }
    FUSED_RNN_DEVICE bool holds_cells() const { return true; }
    FUSED_RNN_DEVICE F sum(int g) const { return sums[g]; }

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
        const int from = thread / 32 * kOwn + lane % 4 * kWord;
        a += lane / 4 * lda + from;
        w += lane / 4 * ldw + from;
        const S* const below = a + 8 * lda;
        const auto step = [&](int k, F(&to)[G][4]) {
            const int later = k + kOwn / 2;
            const uint32_t left[4] = {word(dev, a + k), word(dev, below + k), word(dev, a + later),
                                      word(dev, below + later)};
            FUSED_RNN_UNROLL()
            for (int g = 0; g < G; ++g) {
                const S* column = w + g * gate_stride;
                const uint32_t right[2] = {word(dev, column + k), word(dev, column + later)};
                dev.mma(to[g], left, right, S{});
            }
        };
        int k = 0;
        FUSED_RNN_UNROLL(kChains)
        for (; k + kStep < count; k += 2 * kStep) {
            step(k, parts[0]);
            step(k + kStep, parts[kChains - 1]);
        }
        if (k < count) step(k, parts[0]);
    }

    // After the last `add`. The warps' parts of a sum are added up in their order.
    template <class Device>
    FUSED_RNN_DEVICE void complete(const Device& dev, void* exchange) {
        constexpr int kCells = kRows * kUnits;
        F* const all = static_cast<F*>(exchange);
        FUSED_RNN_UNROLL()
        for (int g = 0; g < G; ++g) FUSED_RNN_UNROLL()
        for (int i = 0; i < 4; ++i) {
            const int cell = (lane / 4 + i / 2 * 8) * kUnits + lane % 4 * 2 + i % 2;
            const F part = kChains == 1 ? parts[0][g][i] : parts[0][g][i] + parts[kChains - 1][g][i];
            all[(thread / 32 * G + g) * kCells + cell] = part;
        }
        dev.sync(Sync::kParts);
        FUSED_RNN_UNROLL()
        for (int g = 0; g < G; ++g) {
            sums[g] = all[g * kCells + thread];
            FUSED_RNN_UNROLL()
            for (int warp = 1; warp < kWarps; ++warp) sums[g] += all[(warp * G + g) * kCells + thread];
        }
    }
};

// The tiles that plan.h chooses among.
enum class TileKind : int { kFew = 0, kBatch = 1, kTensor = 2 };

template <class S, int G>
using FewTile = FmaTile<S, G, 2, 4, 16>;
template <class S, int G>
using BatchTile = FmaTile<S, G, 16, 8, 1>;

}  // namespace fused_rnn::cuda
