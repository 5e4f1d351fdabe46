#include "plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "cluster_plan.h"
#include "tiles.h"

namespace fused_rnn::cuda {
namespace {

struct TileShape {
    TileKind kind;
    int rows, units, team, step, exchange;
    // Multiply-adds a clock of a whole SM at work on it, and of one warp; on tensor cores, with four gates.
    double rate, of_warp;
};

// Tensor cores wait for shared memory: an mma's rows of the batch, 512 bytes, serve all gates, its weights, 256, one. Of few
// warps each waits for itself.
double rate_of(const TileShape& tile, int gates, double warps) {
    const double rate = std::min(tile.rate, warps * tile.of_warp);
    return tile.kind == TileKind::kTensor ? rate * (512.0 / 4 + 256) / (512.0 / gates + 256) : rate;
}

template <class Tile>
constexpr TileShape shape_of(TileKind kind, double rate, double of_warp) {
    return {kind, Tile::kRows, Tile::kUnits, Tile::kTeam, Tile::kStep, Tile::kExchange, rate, of_warp};
}

// Rates are guesses until a GPU has told (docs/performance.md): what the tiles' loads from shared memory leave of the
// peak, or, of a warp, what its own latencies leave. They only choose among plans that are all right.
TileShape tile_shape(const LoopShape& s) {
    if (s.B <= 2 && !s.rowwise) {
        return s.element_size == 8   ? shape_of<FewTile<double, 1>>(TileKind::kFew, 16, 4)
               : s.element_size == 4 ? shape_of<FewTile<float, 1>>(TileKind::kFew, 32, 8)
                                     : shape_of<FewTile<bf16, 1>>(TileKind::kFew, 32, 8);
    }
    if (s.tensor) {
        return s.element_size == 4 ? shape_of<MmaTile<float, 1>>(TileKind::kTensor, 250, 40)
                                   : shape_of<MmaTile<bf16, 1>>(TileKind::kTensor, 500, 100);
    }
    return s.element_size == 8 ? shape_of<BatchTile<double, 1>>(TileKind::kBatch, 16, 4)
                               : shape_of<BatchTile<float, 1>>(TileKind::kBatch, 40, 10);
}

constexpr double kBarrierClocks = 2500;  // of a barrier between blocks
// Of products that torch makes: what the host takes to queue one, and the cells behind it; what a kernel takes that has
// hardly anything to do; multiply-adds a clock of a whole SM, in 2, 4 and 8 bytes, and bytes of weights.
constexpr double kQueueClocks = 14000, kQueueCellsClocks = 7000, kKernelClocks = 5000;
constexpr double kProductRates[] = {1000, 100, 40}, kBytesRead = 20;
// Of a tile: the first copies, a sync and the cell; of each chunk two syncs and what its copies leave to wait for; what a thread
// issues for a copy; bytes a clock that a whole SM stages.
constexpr double kTileClocks = 1200, kChunkClocks = 150, kCopyClocks = 25, kBytesStaged = 25;
constexpr int kMaxChunk = 256;

// One product of a step.
struct Phase {
    int64_t K, columns;
    int gates;
};

int row_bytes(int64_t elements, int element_size) {
    return static_cast<int>(round_up(elements * element_size, 128) + 16);
}

// To two whole steps, as long as there are two: which of its sums a tile adds to (tiles.h) does not depend on the chunk then.
int halved(int chunk, int step) { return chunk > 2 * step ? static_cast<int>(round_up(chunk / 2, 2 * step)) : step; }

// `parts` blocks of `teams` teams for each slice of the batch.
bool consider(const LoopShape& s, const DeviceLimits& limits, const TileShape& tile, const Phase* phases, int count,
              int teams, int parts, Candidate& best) {
    const int64_t units = static_cast<int64_t>(teams) * tile.units;
    const int gates = phases[0].gates;
    int64_t K = 0;
    for (int i = 0; i < count; ++i) K = std::max(K, phases[i].K);

    Plan p{};
    p.tile = static_cast<int>(tile.kind);
    p.threads = teams * tile.team;
    p.units = static_cast<int>(units);
    p.grid.parts = parts;
    p.grid.teams = teams;
    p.grid.chunk = static_cast<int>(std::min<int64_t>(round_up(K, tile.step), std::max(kMaxChunk, tile.step)));

    // Shared memory: the operand twice (two chunks in flight), and the weights either twice or all of this block's.
    const int pointers = kRowPointers * 8;
    const int64_t tiles_each = divide_up(divide_up(phases[0].columns, units), parts);
    const int64_t weights = tiles_each * units * gates * row_bytes(round_up(phases[0].K, tile.step), s.element_size);
    const auto shared = [&](bool resident) {
        const int64_t chunk = row_bytes(p.grid.chunk, s.element_size);
        return pointers + operand_bytes(tile.rows * chunk, teams * gates * tile.exchange, resident) +
               (resident ? weights : 2 * units * gates * chunk);
    };
    p.grid.resident = count == 1 && shared(true) <= limits.shared_per_block;
    while (!p.grid.resident && shared(false) > limits.shared_per_block && p.grid.chunk > tile.step)
        p.grid.chunk = halved(p.grid.chunk, tile.step);
    if (shared(p.grid.resident) > limits.shared_per_block) return false;
    p.shared_bytes = static_cast<int>(shared(p.grid.resident));

    // How many such blocks are on the device at once.
    const int64_t fit =
        std::min<int64_t>({limits.shared_per_sm / round_up(p.shared_bytes + 1024, 128),
                           limits.threads_per_sm / p.threads, limits.registers_per_sm / (kMaxRegisters * p.threads)});
    const int64_t together = limits.sms * std::max<int64_t>(fit, 1);
    const int64_t row_tiles = std::max<int64_t>(1, divide_up(s.B, tile.rows));
    const int64_t most = std::max<int64_t>(1, together / (s.D * parts));
    const int64_t tiles_a_slice = divide_up(row_tiles, std::min(row_tiles, most));
    p.grid.slices = static_cast<int>(divide_up(row_tiles, tiles_a_slice));
    p.grid.slice_rows = tiles_a_slice * tile.rows;
    p.blocks = static_cast<int>(s.D * p.grid.slices * parts);

    const bool alone = parts == 1 || (s.T == 1 && count == 1 && !s.backward && !s.rowwise);
    if (!alone && p.blocks > together) return false;
    p.mode = alone ? Mode::kAlone : limits.cooperative ? Mode::kCooperative : Mode::kSteps;
    p.grid.meets = p.mode == Mode::kCooperative;

    const double waves = std::max(1.0, static_cast<double>(divide_up(p.blocks, together)));
    const double per_sm = std::min(std::max(1.0, static_cast<double>(divide_up(p.blocks, limits.sms))),
                                   static_cast<double>(std::max<int64_t>(fit, 1)));
    const double warps = per_sm * p.threads / 32;
    const double loaded = p.grid.resident ? static_cast<double>(weights) : 0;
    double clocks = loaded * per_sm / kBytesStaged / static_cast<double>(s.T);
    for (int i = 0; i < count; ++i) {
        const Phase& phase = phases[i];
        const int64_t tiles_a_row = divide_up(divide_up(phase.columns, units), parts);
        const double tiles = static_cast<double>(tiles_a_slice * tiles_a_row), K = static_cast<double>(phase.K);
        const double columns = static_cast<double>(units * phase.gates), rows = tile.rows;
        const double adds = rows * columns * K * per_sm / rate_of(tile, phase.gates, warps);
        // The operand, again for each tile unless one chunk is all of it, and the weights.
        const double once = phase.K <= p.grid.chunk ? static_cast<double>(tiles_a_row) : 1;
        const double staged = (rows / once + (p.grid.resident ? 0 : columns)) * K * s.element_size;
        const double issued = staged / kVectorBytes / p.threads * kCopyClocks;
        // Copies come while the chunk before is multiplied.
        clocks += tiles * (kTileClocks + kChunkClocks * std::ceil(K / p.grid.chunk) +
                           std::max(staged * per_sm / kBytesStaged, adds + issued));
        if (!alone) clocks += s.rowwise ? 2 * kBarrierClocks : kBarrierClocks;
    }
    clocks *= waves;
    if (clocks < best.clocks) best = {p, clocks};
    return true;
}

// A loop that stays on the device, its blocks in groups.
Candidate plan_groups(const LoopShape& s, const DeviceLimits& limits, const Phase* phases, int count) {
    const TileShape tile = tile_shape(s);
    const int64_t columns = std::max(count == 2 ? phases[1].columns : 0, phases[0].columns);
    Candidate best{{}, std::numeric_limits<double>::infinity()};
    for (int teams = 1; teams * tile.team <= kMaxThreads; teams *= 2) {
        const int64_t tiles = divide_up(columns, static_cast<int64_t>(teams) * tile.units);
        for (int64_t each = 1; each <= tiles; each *= 2)  // tiles of a block
            consider(s, limits, tile, phases, count, teams, static_cast<int>(divide_up(tiles, each)), best);
        consider(s, limits, tile, phases, count, teams, 1, best);
        if (static_cast<int64_t>(teams) * tile.units >= columns) break;
    }
    const int of_rows = !s.rowwise ? 0 : s.backward ? count : 1;
    best.plan.grid.phases = (1 << (count + of_rows)) - 1;
    best.plan.closing = s.rowwise ? 2 : 1;
    best.plan.grid.first = 0;
    best.plan.grid.last = s.backward ? s.T + 1 : s.T;
    return best;
}

// Torch's product of f32 is not TF32 where the loop's may be: its switch is another one.
Candidate plan_products(const LoopShape& s, const DeviceLimits& limits, const Phase* phases, int count) {
    Plan p{};
    p.mode = Mode::kProducts;
    if (s.rowwise || (limits.loops && s.tensor && s.element_size == 4))
        return {p, std::numeric_limits<double>::infinity()};
    const double D = static_cast<double>(s.D), rate = kProductRates[s.element_size / 4];
    double clocks = 0;
    for (int i = 0; i < count; ++i) {
        const double columns = static_cast<double>(phases[i].columns * phases[i].gates);
        const double weights = columns * static_cast<double>(phases[i].K);
        const double each = std::max(static_cast<double>(s.B) * weights / rate, weights * s.element_size / kBytesRead);
        const double queued = D * kQueueClocks + kQueueCellsClocks;
        clocks += std::max(queued, (D + 1) * kKernelClocks + D * each / limits.sms);
    }
    return {p, limits.loops ? clocks : 0};
}

}  // namespace

Plan plan(const LoopShape& s, const DeviceLimits& limits) {
    const int64_t R = s.P ? s.P : s.H;
    const int G = s.gates;
    // Rows are looked at gate by gate, so that no thread needs all gates of a unit.
    const Phase forward[2] = {s.rowwise ? Phase{R, G * s.H, 1} : Phase{R, s.H, G}, {s.H, s.P, 1}};
    const Phase backward[2] = {{G * s.H, R, 1}, {R, s.H, 1}};
    const Phase* phases = s.backward ? backward : forward;
    const int count = s.P ? 2 : 1;

    Candidate best = plan_groups(s, limits, phases, count);
    for (const Candidate& other : {plan_clusters(s, limits), plan_products(s, limits, phases, count)})
        if (other.clocks < best.clocks) best = other;
    if (best.clocks == std::numeric_limits<double>::infinity())
        throw std::runtime_error("fused_rnn: not enough shared memory on this device for any tile");
    return best.plan;
}

}  // namespace fused_rnn::cuda
