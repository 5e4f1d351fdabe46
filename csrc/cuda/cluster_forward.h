// The forward time loop of one layer where each cluster of blocks has a slice of the batch: h goes from block to block
// through shared memory, the weights never leave the chip. Cells of torch, with one product a step.
#pragma once
#include "cluster.h"
#include "forward_cells.h"

namespace fused_rnn::cuda {

template <class CellMath, int kRowTiles, class Device, class S>
FUSED_RNN_DEVICE void cluster_forward_loop(const Device& dev, const ForwardArgs<S>& a, const ClusterGrid& grid) {
    constexpr int G = CellMath::G, kCells = OwnCells<kRowTiles>::kCount, kRows = kRowTiles * kRowTile;
    using Act = typename CellMath::Act;
    const ForwardLayout layout(grid, a.H, G, sizeof(S));
    const ClusterShare share(dev.block(), grid, a.seq.B, a.H);
    const int bytes = grid.units * static_cast<int>(sizeof(S));  // of a row, of a block's units
    auto* const memory = static_cast<unsigned char*>(dev.shared());
    auto* const sums_of = reinterpret_cast<float*>(memory + layout.sums);
    auto* const state = reinterpret_cast<S*>(memory + layout.state);
    Mailboxes<Device> mail(dev, grid, share.part, bytes, memory + layout.mailboxes);
    ForwardStep<S> step(a, share.direction);

    // This warp's 16 units, and its piece of the summed dimension.
    const int groups = grid.units / kTileRows;
    const int group = dev.thread() / 32 % groups, piece = dev.thread() / 32 / groups;
    const int first_step = piece * layout.steps_each, left = layout.steps - first_step;
    const int steps = left < 0 ? 0 : left < layout.steps_each ? left : layout.steps_each;
    unsigned char* const extra = memory + layout.extra + dev.thread() / 32 * layout.extra_each;
    Fragments<G, S> weights;
    weights.load(dev, G, steps, extra, [&](int g, int row, int k) -> Elements<S> {
        const int64_t j = share.first_unit + group * kTileRows + row, from = first_step * kStepElements<S> + k;
        if (j >= a.H || from >= a.H) return {nullptr, 0};
        return {CellMath::weight(step, g, j) + from, a.H - from};
    });
    // Units that are not there are zeros to who receives them.
    for (int i = dev.thread(); i < kRows * layout.state_row; i += dev.threads()) state[i] = S{};
    dev.meet_cluster();

    const OwnCells<kRowTiles> own(dev, grid, share);
    const auto j = static_cast<unsigned>(share.first_unit + own.at);
    float carried[kCells]{};
    int sent = 0;
    for (int64_t walked = 0; walked < a.seq.T; ++walked) {
        step.at(walked);
        const int rows = share.rows_in(a.seq.rows(step.t)), later = share.rows_in(a.seq.rows(step.after));
        if (rows == 0) continue;
        if (sent > 0) mail.expect(sent * grid.parts * bytes);
        // All is on its way before any of it is looked at.
        float gx[kCells][G];
        own.each(dev, rows, [&](int i, unsigned row) {
            const int64_t n = step.row(share.b0 + row);
            FUSED_RNN_UNROLL()
            for (int g = 0; g < G; ++g) gx[i][g] = *step.gx(n, g, G, j);
        });
        // Rows that come with a state that no step made: nobody has sent it.
        const unsigned anew = share.rows_where(dev, rows, [&](int64_t b) { return step.starts(b); });
        const auto biases = own.any() ? CellMath::biases(dev, step, j) : typename CellMath::Cell{};
        typename CellMath::Cell cells[kCells];
        own.each(dev, rows, [&](int i, unsigned row) {
            cells[i] = biases;
            FUSED_RNN_UNROLL()
            for (int g = 0; g < G; ++g) cells[i].x[g] += gx[i][g];
            if constexpr (CellMath::kCarries) {
                if (anew >> row & 1) carried[i] = step.start(dev, CellMath::initial(a), share.b0 + row, a.H, j);
                cells[i].carried = carried[i];
            }
        });
        if (sent > 0) mail.await();

        unsigned char* const operand = memory + layout.operand + mail.here() * layout.operand_size;
        if (anew) {
            for (int row = 0; row < rows; ++row) {
                if (!(anew >> row & 1)) continue;
                const S* from = step.template seen_before<Act>(share.b0 + row);
                auto* to = reinterpret_cast<S*>(operand + row * layout.operand_row);
                for (int k = dev.thread(); k < layout.steps * kStepElements<S>; k += dev.threads()) {
                    to[k] = S{};
                    if (from && k < a.H) as_factor(dev, dev.widen(from[k]), to[k]);
                }
            }
            dev.sync(Sync::kFilled);
        }

        if (steps > 0) {
            float sums[G][kRowTiles][4]{};
            weights.multiply(dev, G, steps, {operand + first_step * kStepBytes, layout.operand_row}, extra, sums);
            FUSED_RNN_UNROLL()
            for (int g = 0; g < G; ++g)
                weights.each_sum(dev, sums, g, [&](int row, int unit, float sum) {
                    sums_of[((piece * G + g) * kRows + row) * layout.sums_row + group * kTileRows + unit] = sum;
                });
        }
        dev.sync(Sync::kSums);
        typename CellMath::Made made[kCells];
        own.each(dev, rows, [&](int i, unsigned row) {
            float sums[G]{};
            for (int p = 0; p < layout.pieces; ++p) FUSED_RNN_UNROLL()
            for (int g = 0; g < G; ++g) sums[g] += sums_of[((p * G + g) * kRows + row) * layout.sums_row + own.at];
            made[i] = CellMath::make(dev, step, j, cells[i], sums);
            as_factor(dev, made[i].h, state[row * layout.state_row + own.at]);
        });
        dev.sync(Sync::kState);
        sent = rows < later ? rows : later;
        unsigned char* const next = memory + layout.operand + mail.there() * layout.operand_size;
        mail.send(
            sent,
            [&](int row, int offset) {
                const auto* from = reinterpret_cast<const unsigned char*>(state + row * layout.state_row) + offset;
                return [words = *reinterpret_cast<const FourWords*>(from)](int) { return words; };
            },
            [&](int row) { return next + row * layout.operand_row + share.part * bytes; });

        // While that is on its way: what no block waits for.
        own.each(dev, rows, [&](int i, unsigned row) {
            const int64_t b = share.b0 + row;
            if constexpr (CellMath::kCarries) carried[i] = CellMath::next(made[i]);
            CellMath::keep(dev, step, b, j, made[i]);
            step.template show<Act>(dev, b, j, made[i].h);
        });
        FUSED_RNN_UNROLL(1)
        for (int row = own.first; row < later; row += own.apart) {
            const int64_t n = step.row_after(share.b0 + row);
            FUSED_RNN_UNROLL()
            for (int g = 0; g < G; ++g) dev.prefetch(step.gx(n, g, G, j));
        }
    }
}

}  // namespace fused_rnn::cuda
