// The forward time loop of one layer, all directions: for each step h W_hh^T and the cell behind it, then, where a step has
// two products, h_full W_hr^T. Blocks of one slice of the batch meet at its barrier after each product.
#pragma once
#include "forward_cells.h"
#include "product.h"

namespace fused_rnn::cuda {

// The first product of a step.
template <class CellMath, class Device, class S>
struct GatesWork {
    using Cell = typename CellMath::Cell;
    const Device& dev;
    const ForwardStep<S>& step;

    FUSED_RNN_DEVICE int64_t K() const { return step.a.R; }
    FUSED_RNN_DEVICE int64_t columns() const { return step.a.H; }
    FUSED_RNN_DEVICE const S* operand(int64_t b) const { return step.template seen_before<typename CellMath::Act>(b); }
    FUSED_RNN_DEVICE int64_t skip(int64_t k) const { return k; }
    FUSED_RNN_DEVICE const S* weight(int g, int64_t j) const { return CellMath::weight(step, g, j); }
    FUSED_RNN_DEVICE bool copies16() const { return step.a.first_copies16; }
    FUSED_RNN_DEVICE Cell load(int64_t b, int64_t j) const { return CellMath::load(dev, step, b, j); }
    FUSED_RNN_DEVICE void store(int64_t b, int64_t j, const Cell& cell,
                                const ComputeType<S> (&sums)[CellMath::G]) const {
        const ComputeType<S> h = CellMath::store(dev, step, b, j, cell, sums);
        if constexpr (CellMath::kTwice) {
            if (!CellMath::kOnce || step.a.two_products)
                return dev.narrow(h, step.a.h_full[step.state(b, step.a.H) + j]);
        }
        if constexpr (CellMath::kOnce) step.template show<typename CellMath::Act>(dev, b, j, h);
    }
};

// The second: what it leads to is what the layer shows and feeds back.
template <class CellMath, class Device, class S>
struct SecondWork {
    using Cell = typename CellMath::Last;
    const Device& dev;
    const ForwardStep<S>& step;

    FUSED_RNN_DEVICE int64_t K() const { return step.a.H; }
    FUSED_RNN_DEVICE int64_t columns() const { return step.a.R; }
    FUSED_RNN_DEVICE const S* operand(int64_t b) const { return step.a.h_full + step.state(b, K()); }
    FUSED_RNN_DEVICE int64_t skip(int64_t k) const { return k; }
    FUSED_RNN_DEVICE const S* weight(int, int64_t j) const { return step.a.w_hr[step.d] + j * K(); }
    FUSED_RNN_DEVICE bool copies16() const { return step.a.second_copies16; }
    FUSED_RNN_DEVICE Cell load(int64_t b, int64_t j) const { return CellMath::load_last(dev, step, b, j); }
    FUSED_RNN_DEVICE void store(int64_t b, int64_t j, const Cell& cell, const ComputeType<S> (&sums)[1]) const {
        step.template show<typename CellMath::Act>(dev, b, j, CellMath::finish(dev, step, b, j, cell, sums[0]));
    }
};

// What one block does of walked steps [grid.first, grid.last).
template <class CellMath, template <class, int> class Tile, class Device, class S>
FUSED_RNN_DEVICE void forward_loop(const Device& dev, const ForwardArgs<S>& a, const Grid& grid) {
    const Share share(dev.block(), grid, a.seq.B);
    ForwardStep<S> step(a, share.direction);
    GroupBarrier<Device> barrier(dev, a.arrivals + share.group, grid.meets ? grid.parts : 1);
    const GatesWork<CellMath, Device, S> gates{dev, step};
    Product<Tile<S, CellMath::G>, CellMath::G, Device> product(dev, grid, share.part, a.R, grid.resident);
    if (grid.resident) product.load_weights(gates);

    for (int64_t walked = grid.first; walked < grid.last; ++walked) {
        step.at(walked);
        const int64_t b1 = share.end(a.seq.rows(step.t));
        if (grid.phases & 1) {
            product.run(gates, share.b0, b1, barrier);
            barrier.arrive();
        }
        if constexpr (CellMath::kTwice) {
            if (!a.two_products || !(grid.phases & 2)) continue;
            const SecondWork<CellMath, Device, S> last{dev, step};
            Product<Tile<S, 1>, 1, Device> second(dev, grid, share.part, a.H, false);
            second.run(last, share.b0, b1, barrier);
            barrier.arrive();
        }
    }
}

}  // namespace fused_rnn::cuda
