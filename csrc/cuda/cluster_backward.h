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
    constexpr int G = CellMath::kGates, kCells = kCellsEach<kRowTiles>, kRows = kRowTiles * kRowTile;
    using Work = HiddenWork<CellMath, Device, S>;
    const BackwardLayout layout(grid, a.H, G, sizeof(S));
    const ClusterShare share(dev.block(), grid, a.seq.B, a.H);
    const int bytes = grid.units * 4;  // of a row, of a block's units
    auto* const memory = static_cast<unsigned char*>(dev.shared());
    unsigned char* const operand = memory + layout.operand;
    auto* const sums_of = reinterpret_cast<float*>(memory + layout.sums);
    Mailboxes<Device> mail(dev, grid, share.part, memory + layout.mailboxes);
    BackwardStep<S> step(a, share.direction);

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

    int sent = 0;
    for (int64_t walked = 0; walked <= a.seq.T; ++walked) {
        step.at(a.seq.T - 1 - walked);  // the last is before the first: there is dh0
        const int rows = share.rows_in(a.seq.rows(step.t)), earlier = share.rows_in(a.seq.rows(step.before));
        if (rows == 0 && sent == 0) continue;
        const auto is_there = [&](const CellPlace& at) { return at.row < rows && at.unit < share.units; };
        typename Work::Cell cells[kCells]{};
        FUSED_RNN_UNROLL()
        for (int i = 0; i < kCells; ++i) {
            const CellPlace at(dev, grid, i);
            if (is_there(at)) cells[i] = Work(step, dev).load(share.b0 + at.row, share.first_unit + at.unit);
        }
        if (sent > 0) mail.receive(sent * grid.parts * bytes);

        const auto* received =
            reinterpret_cast<const float*>(memory + layout.received + mail.here() * layout.received_size);
        const auto sum_of = [&](const CellPlace& at) {
            float sum = 0;
            for (int part = 0; part < grid.parts; ++part)
                sum += received[(part * kRows + at.row) * grid.units + at.unit];
            return sum;
        };
        FUSED_RNN_UNROLL()
        for (int i = 0; i < kCells; ++i) {
            const CellPlace at(dev, grid, i);
            const int64_t b = share.b0 + at.row, j = share.first_unit + at.unit;
            if (is_there(at)) {
                const float sums[1] = {step.goes_on(b) ? sum_of(at) : 0.f};
                const auto gradients = Work(step, dev).store(b, j, cells[i], sums);
                auto* to = reinterpret_cast<S*>(operand + at.row * layout.operand_row) + at.unit;
                FUSED_RNN_UNROLL()
                for (int g = 0; g < G; ++g) as_factor(dev, of_gate(gradients, g), to[g * grid.units]);
            } else if (a.needs_dh0 && at.row < sent && at.unit < share.units) {
                // The step that sent this was the row's first.
                const InitialWork<CellMath, Device, S> initial(step, dev);
                const float sums[1] = {step.reads_initial(b) ? sum_of(at) : 0.f};
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
            sent, bytes,
            [&](int peer, int row) {
                return reinterpret_cast<const unsigned char*>(sums_of + row * layout.sums_row + peer * grid.units);
            },
            [&](int row) { return next + (share.part * kRows + row) * bytes; });
    }
}

}  // namespace fused_rnn::cuda
