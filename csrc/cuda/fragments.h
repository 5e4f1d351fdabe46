// Weights that stay with a warp for a whole loop, as fragments of PTX mma: the first steps in registers, the rest in shared
// memory as a warp reads it, 16 bytes a lane. A tile is 16 rows by 32 bytes of the summed dimension: 16 elements of f16 and
// bf16, 8 of f32, which is multiplied as TF32.
//
// A lane has neighbouring elements, 8 bytes of a row. PTX gives it others, but which summed elements an mma takes for which
// is free, as long as both factors agree.
#pragma once
#include <cstring>

#include "cell_math.h"
#include "cluster_layout.h"

namespace fused_rnn::cuda {

template <class S>
constexpr int kStepElements = kStepBytes / static_cast<int>(sizeof(S));
template <class S>
constexpr int kLaneElements = 8 / static_cast<int>(sizeof(S));

struct alignas(8) TwoWords {
    uint32_t at[2];
};
struct alignas(16) FourWords {
    uint32_t at[4];
};

// Elements of a row from `at` on, of which `count` are there; what is missing is zero.
template <class S>
struct Elements {
    const S* at;
    int64_t count;
};

// What a product takes of a value.
template <class Device, class S>
FUSED_RNN_DEVICE void as_factor(const Device& dev, float x, S& to) {
    if constexpr (sizeof(S) == 4) {
        to = dev.tf32(x);
    } else {
        dev.narrow(x, to);
    }
}

template <class Device, class S>
FUSED_RNN_DEVICE TwoWords load_words(const Device& dev, const Elements<S>& from) {
    constexpr int kCount = kLaneElements<S>;
    S values[kCount]{};
    if (from.count >= kCount && reinterpret_cast<uintptr_t>(from.at) % sizeof(TwoWords) == 0) {
        const TwoWords both = *reinterpret_cast<const TwoWords*>(from.at);
        std::memcpy(values, &both, sizeof(both));
    } else {
        FUSED_RNN_UNROLL()
        for (int e = 0; e < kCount; ++e)
            if (e < from.count) values[e] = from.at[e];
    }
    if constexpr (sizeof(S) == 4) {
        FUSED_RNN_UNROLL()
        for (int e = 0; e < kCount; ++e) values[e] = dev.tf32(values[e]);
    }
    TwoWords words;
    std::memcpy(&words, values, sizeof(words));
    return words;
}

// An operand in shared memory: rows of the batch, `row` bytes apart.
struct Operand {
    const unsigned char* at;
    int row;
};

template <int kTiles, class S>
class Fragments {
  public:
    static constexpr int kHeld = held_steps(kTiles);
    // A tile alone is summed up in two, by even and by odd steps, or each mma would wait for the one before.
    static constexpr int kChains = kTiles > 1 ? 1 : 2;

    // Of `tiles` tiles. place(i, row, k): the elements of a row of tile i from k on. `extra` takes the steps that are not
    // held; returned is where it ends.
    template <class Device, class Place>
    FUSED_RNN_DEVICE unsigned char* load(const Device& dev, int tiles, int steps, unsigned char* extra,
                                         const Place& place) {
        FUSED_RNN_UNROLL()
        for (int s = 0; s < kHeld; ++s) {
            if (s < steps) {
                FUSED_RNN_UNROLL()
                for (int i = 0; i < kTiles; ++i)
                    if (i < tiles) held_[s][i] = load_tile(dev, s, i, place);
            }
        }
        return load_extra(dev, tiles, kHeld, steps, extra, place);
    }
    // Steps from `first` on.
    template <class Device, class Place>
    static FUSED_RNN_DEVICE unsigned char* load_extra(const Device& dev, int tiles, int first, int steps,
                                                      unsigned char* extra, const Place& place) {
        auto* to = reinterpret_cast<FourWords*>(extra) + dev.thread() % 32;
        FUSED_RNN_UNROLL(1)
        for (int s = first; s < steps; ++s) {
            FUSED_RNN_UNROLL(1)
            for (int i = 0; i < tiles; ++i, to += 32) *to = load_tile(dev, s, i, place);
        }
        return reinterpret_cast<unsigned char*>(to - dev.thread() % 32);
    }

    // sums += these tiles times eight rows of the operand at a time. Returns where it ended in `extra`.
    template <int kRowTiles, class Device>
    FUSED_RNN_DEVICE const unsigned char* multiply(const Device& dev, int tiles, int steps, const Operand& operand,
                                                   const unsigned char* extra,
                                                   float (&sums)[kTiles][kRowTiles][4]) const {
        float odd[kTiles][kRowTiles][4]{};
        FUSED_RNN_UNROLL()
        for (int s = 0; s < kHeld; ++s)
            if (s < steps) add(dev, tiles, s, held_[s], operand, s % kChains ? odd : sums);
        const unsigned char* const end = multiply_extra(dev, tiles, kHeld, steps, operand, extra, sums);
        if constexpr (kChains > 1) {
            FUSED_RNN_UNROLL()
            for (int k = 0; k < kRowTiles * 4; ++k) sums[0][k / 4][k % 4] += odd[0][k / 4][k % 4];
        }
        return end;
    }
    template <int kRowTiles, class Device>
    static FUSED_RNN_DEVICE const unsigned char* multiply_extra(const Device& dev, int tiles, int first, int steps,
                                                                const Operand& operand, const unsigned char* extra,
                                                                float (&sums)[kTiles][kRowTiles][4]) {
        auto* from = reinterpret_cast<const FourWords*>(extra) + dev.thread() % 32;
        FUSED_RNN_UNROLL(1)
        for (int s = first; s < steps; ++s) {
            FourWords words[kTiles];
            FUSED_RNN_UNROLL()
            for (int i = 0; i < kTiles; ++i) {
                if (i >= tiles) continue;
                words[i] = *from;
                from += 32;
            }
            add(dev, tiles, s, words, operand, sums);
        }
        return reinterpret_cast<const unsigned char*>(from - dev.thread() % 32);
    }

    // f(row, unit, sum) for this lane's sums of tile i: rows of the batch, units of the tile.
    template <int kRowTiles, class Device, class Function>
    static FUSED_RNN_DEVICE void each_sum(const Device& dev, const float (&sums)[kTiles][kRowTiles][4], int i,
                                          const Function& f) {
        const int lane = dev.thread() % 32;
        FUSED_RNN_UNROLL()
        for (int k = 0; k < kRowTiles * 4; ++k)
            f(k / 4 * kRowTile + lane % 4 * 2 + k % 2, lane / 4 + k % 4 / 2 * 8, sums[i][k / 4][k % 4]);
    }

  private:
    template <class Device, class Place>
    static FUSED_RNN_DEVICE FourWords load_tile(const Device& dev, int s, int i, const Place& place) {
        const int lane = dev.thread() % 32, k = s * kStepElements<S> + lane % 4 * kLaneElements<S>;
        const TwoWords upper = load_words(dev, place(i, lane / 4, k)),
                       lower = load_words(dev, place(i, lane / 4 + 8, k));
        return {{upper.at[0], lower.at[0], upper.at[1], lower.at[1]}};
    }

    template <int kRowTiles, class Device>
    static FUSED_RNN_DEVICE void add(const Device& dev, int tiles, int s, const FourWords (&weights)[kTiles],
                                     const Operand& operand, float (&sums)[kTiles][kRowTiles][4]) {
        const int lane = dev.thread() % 32;
        const unsigned char* from = operand.at + lane / 4 * operand.row + s * kStepBytes + lane % 4 * 8;
        FUSED_RNN_UNROLL()
        for (int rows = 0; rows < kRowTiles; ++rows) {
            const TwoWords right = *reinterpret_cast<const TwoWords*>(from + rows * kRowTile * operand.row);
            FUSED_RNN_UNROLL()
            for (int i = 0; i < kTiles; ++i)
                if (i < tiles) dev.mma(sums[i][rows], weights[i].at, right.at, S{});
        }
    }

    FourWords held_[kHeld][kTiles];
};

}  // namespace fused_rnn::cuda
