// The backward time loop where each cluster of blocks has a slice of the batch. A block multiplies the gradients of its own
// gates by the weights of its own units, which stay on the chip, and sends every block its share of dh, to be summed up there:
// for an LSTM that is half of what all gradients would be.
#pragma once
#include "backward.h"
#include "cluster.h"

namespace fused_rnn::cuda {

// The gradient that W_hh multiplies, of gate g.
FUSED_RNN_DEVICE float of_gate(const LstmGrad<float>& d, int g) {
    return g == 0 ? d.i : g == 1 ? d.f : g == 2 ? d.g : d.o;
}
FUSED_RNN_DEVICE float of_gate(const GruGrad<float>& d, int g) { return g == 0 ? d.r : g == 1 ? d.z : d.hn; }
FUSED_RNN_DEVICE float of_gate(float d, int) { return d; }

template <class CellMath, int kRowTiles, class Device, class S>
FUSED_RNN_DEVICE void cluster_backward_loop(const Device& dev, const BackwardArgs<S>& a, const ClusterGrid& grid) {
    constexpr int G = CellMath::kGates, kCells = OwnCells<kRowTiles>::kCount, kRows = kRowTiles * kRowTile;
    using Work = HiddenWork<CellMath, Device, S>;
    const BackwardLayout layout(grid, a.H, G, sizeof(S));
    const ClusterShare share(dev.block(), grid, a.seq.B, a.H);
    const int bytes = grid.units * 4;  // of a row, of a block's units
    auto* const memory = static_cast<unsigned char*>(dev.shared());
    unsigned char* const operand = memory + layout.operand;
    auto* const sums_of = reinterpret_cast<float*>(memory + layout.sums);
    Mailboxes<Device> mail(dev, grid, share.part, bytes, memory + layout.mailboxes);
    BackwardStep<S> step(a, share.direction);
    const Work work(step, dev);
    const InitialWork<CellMath, Device, S> initial(step, dev);

    // This warp's tiles: of every eighth 16 units.
    const int warp = dev.thread() / 32;
    const auto tile = [&](int i) { return i * kClusterWarps + warp; };
    unsigned char* const extra = memory + layout.extra + warp * layout.extra_each;
    using Weights = Fragments<kTilesAtOnce, S>;
    Weights weights;
    const auto place = [&](int first) {
        return [&, first](int i, int row, int k) -> Elements<S> {
            const int64_t j = tile(first + i) * kTileRows + row, unit = share.first_unit + k % grid.units;
            if (j >= a.H || unit >= a.H) return {nullptr, 0};
            return {HiddenProduct<S>{step}.weight(0, j) + k / grid.units * a.H + unit, a.H - unit};
        };
    };
    unsigned char* to = weights.load(dev, layout.at_once(0), layout.steps, extra, place(0));
    for (int first = kTilesAtOnce; first < layout.tiles_each; first += kTilesAtOnce)
        to = Weights::load_extra(dev, layout.at_once(first), 0, layout.steps, to, place(first));
    // Units that are not there have no gradient.
    for (int i = dev.thread(); i < kRows * layout.operand_row / 4; i += dev.threads())
        reinterpret_cast<uint32_t*>(operand)[i] = 0;
    dev.meet_cluster();

    const OwnCells<kRowTiles> own(dev, grid, share);
    const auto j = static_cast<unsigned>(share.first_unit + own.at);
    int sent = 0;
    for (int64_t walked = 0; walked <= a.seq.T; ++walked) {
        step.at(a.seq.T - 1 - walked);  // the last is before the first: there is dh0
        const int rows = share.rows_in(a.seq.rows(step.t)), earlier = share.rows_in(a.seq.rows(step.before));
        if (rows == 0 && sent == 0) continue;
        if (sent > 0) mail.expect(sent * grid.parts * bytes);
        typename Work::Cell cells[kCells];
        if constexpr (kRowTiles == 1) {
            // All is on its way before any of it is looked at.
            typename Work::Read read[kCells];
            own.each(dev, rows, [&](int i, unsigned row) { read[i] = work.read(share.b0 + row, j); });
            own.each(dev, rows, [&](int i, unsigned row) { cells[i] = work.widened(share.b0 + row, j, read[i]); });
        } else {  // there are no registers for it
            own.each(dev, rows, [&](int i, unsigned row) { cells[i] = work.load(share.b0 + row, j); });
        }
        const unsigned continuing = share.rows_where(dev, rows, [&](int64_t b) { return step.goes_on(b); });
        if (sent > 0) mail.await();

        const auto* received =
            reinterpret_cast<const float*>(memory + layout.received + mail.here() * layout.received_size);
        const unsigned at = dev.again(static_cast<unsigned>(own.at));
        const auto sum_of = [&](int row) {
            float sum = 0;
            for (int part = 0; part < grid.parts; ++part) sum += received[(part * kRows + row) * grid.units + at];
            return sum;
        };
        own.each(dev, rows, [&](int i, unsigned row) {
            const float sums[1] = {continuing >> row & 1 ? sum_of(row) : 0.f};
            const auto gradients = work.store(share.b0 + row, j, cells[i], sums);
            auto* to = reinterpret_cast<S*>(operand + row * layout.operand_row) + at;
            FUSED_RNN_UNROLL()
            for (int g = 0; g < G; ++g) as_factor(dev, of_gate(gradients, g), to[g * grid.units]);
        });
        if (a.needs_dh0) {
            FUSED_RNN_UNROLL(1)
            for (int row = own.first; row < sent; row += own.apart) {
                if (row < rows) continue;
                // The step that sent this was the row's first.
                const int64_t b = share.b0 + row;
                const float sums[1] = {step.reads_initial(b) ? sum_of(row) : 0.f};
                initial.store(b, j, initial.load(b, j), sums);
            }
        }
        sent = earlier > 0 || a.needs_dh0 ? rows : 0;
        if (sent == 0) continue;
        dev.sync(Sync::kState);

        const unsigned char* more = extra;
        FUSED_RNN_UNROLL(1)
        for (int first = 0; first < layout.tiles_each; first += kTilesAtOnce) {
            const int tiles = layout.at_once(first);
            float sums[kTilesAtOnce][kRowTiles][4]{};
            const Operand from{operand, layout.operand_row};
            more = first == 0 ? weights.multiply(dev, tiles, layout.steps, from, more, sums)
                              : Weights::multiply_extra(dev, tiles, 0, layout.steps, from, more, sums);
            FUSED_RNN_UNROLL()
            for (int t = 0; t < kTilesAtOnce; ++t) {
                if (t >= tiles || tile(first + t) >= layout.tiles) continue;
                Weights::each_sum(dev, sums, t, [&](int row, int unit, float sum) {
                    sums_of[row * layout.sums_row + tile(first + t) * kTileRows + unit] = sum;
                });
            }
        }
        dev.sync(Sync::kSums);
        unsigned char* const next = memory + layout.received + mail.there() * layout.received_size;
        mail.send(
            sent,
            [&](int row, int offset) {
                const auto* from = reinterpret_cast<const unsigned char*>(sums_of + row * layout.sums_row) + offset;
                return [=](int peer) { return *reinterpret_cast<const FourWords*>(from + peer * bytes); };
            },
            [&](int row) { return next + (share.part * kRows + row) * bytes; });
        if constexpr (kRowTiles == 1 || sizeof(S) == 2) {  // with two tiles of f32 there are none for this either
            step.at(a.seq.T - 2 - walked);
            FUSED_RNN_UNROLL(1)
            for (int row = own.first; row < earlier; row += own.apart)
                step.prefetch(dev, CellMath::kReads, share.b0 + row, j);
        }
    }
}

}  // namespace fused_rnn::cuda
