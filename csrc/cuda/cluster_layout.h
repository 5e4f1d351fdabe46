// How a cluster of blocks (compute capability 9.0 and later) shares a time loop, and where its things lie in shared memory:
// arithmetic for the plan and for the kernels.
//
// A cluster has one slice of the batch, whole; each of its blocks a part of the units. Weights lie in tiles of 16 rows by
// 32 bytes of the summed dimension, a step of PTX mma; each warp keeps its own for the whole loop, as many as there is
// room for in registers, the rest in shared memory.
#pragma once
#include "plan.h"

namespace fused_rnn::cuda {

constexpr int kClusterWarps = 8, kClusterThreads = 32 * kClusterWarps;
constexpr int kTileRows = 16, kStepBytes = 32;  // of a tile of weights
constexpr int kTileBytes = kTileRows * kStepBytes;
constexpr int kRowTile = 8;        // rows of the batch that a product takes at a time
constexpr int kClusterRows = 16;   // most rows of a slice
constexpr int kClusterUnits = 64;  // most units of a block
constexpr int kHeldTiles = 32;     // of a warp in registers, four each
constexpr int kTilesAtOnce = 4;    // that it multiplies side by side in the backward pass
constexpr int kMailboxBytes = 16;  // of two

// Rows of operands in shared memory, of whole steps: 8 bytes at a time of eight neighbouring ones meet in no bank.
constexpr int operand_row(int bytes) { return bytes % 64 ? bytes : bytes + kStepBytes; }
// And of sums, written a column of a tile at a time.
constexpr int sums_row(int count) { return count + 4; }

// Steps of so many tiles side by side that a warp holds in registers, and how many are over.
constexpr int held_steps(int tiles) { return kHeldTiles / tiles; }
constexpr int extra_steps(int tiles, int steps) { return steps > held_steps(tiles) ? steps - held_steps(tiles) : 0; }

// Rows of the batch that products are made of.
constexpr int padded_rows(const ClusterGrid& grid) {
    return divide_up(static_cast<int>(grid.slice_rows), kRowTile) * kRowTile;
}

// Forward, a block multiplies the weights of its units by the whole of h. Warps share 16 units among them, each a piece of
// the summed dimension, whose sums come together in shared memory.
struct ForwardLayout {
    int steps, steps_each, pieces;                  // of the summed dimension: all, of one warp, and of how many
    int operand_row, sums_row, state_row;           // bytes, values, elements
    int operand, operand_size, sums, state, extra;  // bytes from the beginning; two operands
    int extra_each, mailboxes, total;

    constexpr ForwardLayout(const ClusterGrid& grid, int64_t H, int gates, int size)
        : steps(divide_up(static_cast<int>(H) * size, kStepBytes)),
          steps_each(divide_up(steps, kClusterWarps / (grid.units / kTileRows))),
          pieces(divide_up(steps, steps_each)),
          operand_row(cuda::operand_row(grid.parts * grid.units * size)),
          sums_row(cuda::sums_row(grid.units)),
          state_row(grid.units),
          operand(0),
          operand_size(padded_rows(grid) * operand_row),
          sums(2 * operand_size),
          state(sums + pieces * gates * padded_rows(grid) * sums_row * 4),
          extra(state + padded_rows(grid) * state_row * size),
          extra_each(extra_steps(gates, steps_each) * gates * kTileBytes),
          mailboxes(extra + grid.units / kTileRows * pieces * extra_each),
          total(mailboxes + kMailboxBytes) {}
};

// Backward, it multiplies the weights of its units, transposed, by what its own cells made: that gives a share of the sums of
// all units, which go to the blocks that these are of. Warps share the units.
struct BackwardLayout {
    int steps, tiles, tiles_each;  // of the summed dimension; of all units, and of a warp, which takes a few at once
    int operand_row, sums_row;
    int operand, sums, received, received_size, extra;  // two of what is received: [parts, rows, units]
    int extra_each, mailboxes, total;

    constexpr BackwardLayout(const ClusterGrid& grid, int64_t H, int gates, int size)
        : steps(gates * grid.units * size / kStepBytes),
          tiles(divide_up(static_cast<int>(H), kTileRows)),
          tiles_each(divide_up(tiles, kClusterWarps)),
          operand_row(cuda::operand_row(steps * kStepBytes)),
          sums_row(cuda::sums_row(grid.parts * grid.units)),
          operand(0),
          sums(padded_rows(grid) * operand_row),
          received(sums + padded_rows(grid) * sums_row * 4),
          received_size(grid.parts * padded_rows(grid) * grid.units * 4),
          extra(received + 2 * received_size),
          extra_each((extra_steps(kTilesAtOnce, steps) * at_once(0) + steps * (tiles_each - at_once(0))) * kTileBytes),
          mailboxes(extra + kClusterWarps * extra_each),
          total(mailboxes + kMailboxBytes) {}

    // Tiles of a warp from the `first` on that it takes at once.
    constexpr int at_once(int first) const {
        return tiles_each - first < kTilesAtOnce ? tiles_each - first : kTilesAtOnce;
    }
};

}  // namespace fused_rnn::cuda
