#include "cluster_plan.h"

#include <algorithm>
#include <limits>

#include "cluster_layout.h"

namespace fused_rnn::cuda {
namespace {

// Guesses until a GPU has told, as those of plan.cpp.
constexpr double kStepClocks = 700;        // two meetings of a block's threads, the cell
constexpr double kExchangeClocks = 900;    // until what was sent to another block is seen there
constexpr double kBytesReceived = 16;      // a clock, by a block from others
constexpr double kBytesShared = 100;       // a clock, from a block's own shared memory
constexpr double kBytesLoaded = 16;        // a clock, of weights before the first step
constexpr double kTileRowsMultiplied = 6;  // clocks of an mma of a quarter of a multiprocessor

// What one block does in a step, and how much of its shared memory that takes.
struct Work {
    int64_t products, extra_bytes, received_bytes;  // products: of a warp, by eight rows
    int shared_bytes;
};

Work work_of(const LoopShape& s, const ClusterGrid& grid) {
    const int rows = padded_rows(grid), row_tiles = rows / kRowTile;
    if (s.backward) {
        const BackwardLayout layout(grid, s.H, s.gates, s.element_size);
        return {static_cast<int64_t>(layout.tiles_each) * layout.steps * row_tiles,
                static_cast<int64_t>(kClusterWarps) * layout.extra_each, grid.slice_rows * grid.parts * grid.units * 4,
                layout.total};
    }
    const ForwardLayout layout(grid, s.H, s.gates, s.element_size);
    return {static_cast<int64_t>(s.gates) * layout.steps_each * row_tiles,
            static_cast<int64_t>(kClusterWarps) * layout.extra_each,
            grid.slice_rows * grid.parts * grid.units * s.element_size, layout.total};
}

}  // namespace

Candidate plan_clusters(const LoopShape& s, const DeviceLimits& limits) {
    Candidate best{{}, std::numeric_limits<double>::infinity()};
    if (!s.clusters || !s.tensor || s.rowwise || s.P > 0) return best;
    for (int size = 0; size < kClusterSizes; ++size) {
        if (limits.clusters[size] == 0) continue;
        ClusterGrid grid{};
        grid.parts = 1 << size;
        const int64_t units = round_up(divide_up(s.H, grid.parts), kTileRows);
        if (units > kClusterUnits) continue;
        grid.units = static_cast<int>(units);
        const int64_t each = std::max<int64_t>(1, limits.clusters[size] / s.D);
        grid.slice_rows = std::clamp<int64_t>(divide_up(s.B, each), 1, kClusterRows);
        grid.slices = static_cast<int>(divide_up(s.B, grid.slice_rows));
        const Work work = work_of(s, grid);
        if (work.shared_bytes > limits.shared_per_block) continue;

        const double weights = static_cast<double>(s.gates * s.H * units * s.element_size);
        const double waves = static_cast<double>(divide_up(s.D * grid.slices, limits.clusters[size]));
        double clocks = kStepClocks + 2 * kTileRowsMultiplied * static_cast<double>(work.products) +
                        static_cast<double>(work.extra_bytes) / kBytesShared +
                        weights / kBytesLoaded / static_cast<double>(s.T);
        if (grid.parts > 1) clocks += kExchangeClocks + static_cast<double>(work.received_bytes) / kBytesReceived;
        clocks *= waves;
        if (clocks >= best.clocks) continue;
        Plan p{};
        p.mode = Mode::kClusters;
        p.cluster = grid;
        p.threads = kClusterThreads;
        p.blocks = static_cast<int>(s.D * grid.slices * grid.parts);
        p.shared_bytes = work.shared_bytes;
        p.units = grid.units;
        best = {p, clocks};
    }
    if (limits.clusters_first && best.plan.mode == Mode::kClusters) best.clocks = 0;
    return best;
}

}  // namespace fused_rnn::cuda
