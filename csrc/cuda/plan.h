// Which tile, how many blocks and how much shared memory a time loop takes: plain C++, from sizes and what the device
// can do. Tested without a GPU.
#pragma once
#include <cstdint>

#include "args.h"

namespace fused_rnn::cuda {

constexpr int kClusterSizes = 5;  // of 1, 2, 4, 8, 16 blocks

// What a launch may use. `FUSED_RNN_CUDA_LIMITS` lowers it (launch.h).
struct DeviceLimits {
    int sms;
    int shared_per_block;  // bytes, what a block may opt in to
    int shared_per_sm;
    int threads_per_sm;
    int registers_per_sm;
    bool cooperative;               // blocks may wait for each other
    int clusters[kClusterSizes]{};  // how many there is room for at once, a multiprocessor to a block
    bool loops = true;              // false: no loop stays on the device
    bool clusters_first = false;    // clusters wherever they serve, whatever they cost
};

struct LoopShape {
    int gates;  // of the product with h
    bool backward;
    int64_t T, B, D, H;
    int64_t P;         // columns of a second product, or 0
    int element_size;  // of the storage type
    bool tensor;       // whether tensor cores may multiply it: f16, bf16, and f32 that may be rounded to TF32
    bool rowwise;      // whole rows are looked at behind a product
    bool clusters;     // whether loops of clusters know such a cell
};

enum class Mode : int {
    kAlone = 0,        // blocks that share nothing: one plain launch
    kCooperative = 1,  // groups of blocks meet at a barrier once a product, one cooperative launch
    kSteps = 2,        // one launch a product
    kClusters = 3,     // clusters of blocks hand each other what they need: one plain launch
    kProducts = 4,     // torch makes each product; behind it comes a launch of cells
};

struct Plan {
    int tile;  // TileKind, but of clusters and products, as what follows
    Mode mode;
    Grid grid;
    ClusterGrid cluster;  // of clusters
    int threads, blocks, shared_bytes;
    int units;    // of a block's tile
    int closing;  // the last of the phases that give dh0, after the last step
};

Plan plan(const LoopShape& shape, const DeviceLimits& limits);

// The grids of a loop of T steps cut into launches, each of which ends where its blocks would have to meet.
template <class Launch>
void each_step(const Plan& plan, int64_t T, const Launch& launch) {
    Grid grid = plan.grid;
    const int64_t end = grid.last;
    const int phases = grid.phases;
    grid.meets = false;
    for (int64_t step = grid.first; step < end; ++step) {
        grid.first = step;
        grid.last = step + 1;
        for (int phase = 1; phase <= phases; phase <<= 1) {
            if (step == T && phase > plan.closing) break;
            grid.phases = phase;
            launch(grid);
        }
    }
}

// Rows in shared memory: whole lines of all 32 banks and 16 bytes, so that eight neighbouring rows meet in no bank.
constexpr auto divide_up(auto n, auto by) { return (n + by - 1) / by; }
constexpr int64_t round_up(int64_t n, int64_t step) { return divide_up(n, step) * step; }
template <class S>
constexpr int padded_row(int64_t elements) {
    return static_cast<int>((round_up(elements * static_cast<int64_t>(sizeof(S)), 128) + 16) /
                            static_cast<int64_t>(sizeof(S)));
}
// Two chunks of the operand, of so many bytes each. When sums are complete the second is free, and with it the weights that
// follow, if they do not stay: there is room to exchange parts of sums.
constexpr int64_t operand_bytes(int64_t chunk, int64_t exchange, bool resident) {
    return resident && exchange > chunk ? chunk + exchange : 2 * chunk;
}
constexpr int kRowPointers = 16;  // of 8 bytes, before the tiles in shared memory: the rows of the operand at hand

// What kernels are compiled for, and the most registers that one of them takes (tests/cpp/cuda_check.py holds them to it):
// the blocks that a plan counts on must fit together.
constexpr int kMaxThreads = 256;
constexpr int kMaxRegisters = 168;

}  // namespace fused_rnn::cuda
