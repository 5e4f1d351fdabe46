// The backward time loop: for each step, last first, dh of the step is dg W_hh of the step after (in walking order) plus
// what y and hn send; the cell turns it into dg. Of two products the second goes on from what the cell makes of that: with a
// projection dr = dg W_hh + dy, dh = dr W_hr.
// One more product after the last step gives dh0; where episodes begin from h0 too, it is made outside (SumsArgs, rows.h).
#pragma once
#include "backward_cells.h"
#include "product.h"

namespace fused_rnn::cuda {

// dg W_hh, whatever follows: gates lie in dg's rows in torch's order, but for a GRU's n, whose hidden side is apart.
template <class S, class Step = BackwardStep<S>>
struct HiddenProduct {
    const Step& step;

    FUSED_RNN_DEVICE int64_t K() const { return step.a.G * step.a.H; }
    FUSED_RNN_DEVICE int64_t columns() const { return step.a.R; }
    FUSED_RNN_DEVICE const S* operand(int64_t b) const { return step.later_gates(b); }
    FUSED_RNN_DEVICE int64_t skip(int64_t k) const { return hidden_column(step.a.cell, step.a.H, k); }
    FUSED_RNN_DEVICE const S* weight(int, int64_t j) const { return step.a.w_hh_t[step.d] + j * K(); }
    FUSED_RNN_DEVICE bool copies16() const { return step.a.first_copies16; }
};
// The second of two, of the gradient of what a step shows.
template <class S, class Step = BackwardStep<S>>
struct SecondProduct {
    const Step& step;

    FUSED_RNN_DEVICE int64_t K() const { return step.a.R; }
    FUSED_RNN_DEVICE int64_t columns() const { return step.a.H; }
    FUSED_RNN_DEVICE const S* operand(int64_t b) const { return step.second(step.row(b)); }
    FUSED_RNN_DEVICE int64_t skip(int64_t k) const { return k; }
    FUSED_RNN_DEVICE const S* weight(int, int64_t j) const { return step.a.w_hr_t[step.d] + j * K(); }
    FUSED_RNN_DEVICE bool copies16() const { return step.a.second_copies16; }
};

// What later steps send to h: by the product, through what W_hh saw of it, and past that.
template <class CellMath, class S>
FUSED_RNN_DEVICE ComputeType<S> passed(const BackwardStep<S>& step, int64_t b, int64_t j) {
    return CellMath::passes(step.a) ? step.passed(b, j) : ComputeType<S>(0);
}
template <class CellMath, class S>
FUSED_RNN_DEVICE ComputeType<S> multiplied(const BackwardStep<S>& step, int64_t b, int64_t j, ComputeType<S> sum) {
    if constexpr (kVaries<typename CellMath::Act>) return step.masked_h(b, j, sum);
    return sum;
}

// The same on its way to h of a step; where squares are asked for, with what passed by it, noted.
template <class CellMath, class S>
FUSED_RNN_DEVICE ComputeType<S> arrived(const BackwardStep<S>& step, int64_t b, int64_t j, ComputeType<S> sum) {
    const ComputeType<S> product = multiplied<CellMath>(step, b, j, sum);
    if (step.a.sent_h && step.goes_on(b))
        step.a.sent_h[step.noted(step.row(b), step.a.R) + j] = product + passed<CellMath>(step, b, j);
    return product;
}

// The product of a step that has one: its sum is dh.
template <class CellMath, class Device, class S>
struct HiddenWork : HiddenProduct<S> {
    const Device& dev;
    struct Cell {
        typename CellMath::Cell own;
        ComputeType<S> dh;
    };
    struct Read {
        typename CellMath::Read own;
        S from_y;
        ComputeType<S> passed;  // by the step after, if there is one
    };
    using HiddenProduct<S>::step;

    FUSED_RNN_DEVICE HiddenWork(const BackwardStep<S>& s, const Device& device) : HiddenProduct<S>{s}, dev(device) {}
    FUSED_RNN_DEVICE Cell load(int64_t b, int64_t j) const { return widened(b, j, read(b, j)); }
    FUSED_RNN_DEVICE Read read(int64_t b, int64_t j) const {
        return {CellMath::read(step, b, j), step.from_y(b, j), passed<CellMath>(step, b, j)};
    }
    FUSED_RNN_DEVICE Cell widened(int64_t b, int64_t j, const Read& from) const {
        Cell cell{CellMath::widened(dev, step, b, j, from.own), dev.widen(from.from_y) + step.from_hn(dev, b, j)};
        if (step.goes_on(b)) cell.dh += from.passed;
        return cell;
    }
    FUSED_RNN_DEVICE auto store(int64_t b, int64_t j, const Cell& cell, const ComputeType<S> (&sums)[1]) const {
        return CellMath::store(dev, step, b, j, cell.own, cell.dh + arrived<CellMath>(step, b, j, sums[0]));
    }
};

// The first of two: the same sum, and what the cell makes of it for the second,
template <class CellMath, class Device, class S>
struct ShownWork : HiddenProduct<S> {
    const Device& dev;
    struct Cell {
        typename CellMath::Shown own;
        ComputeType<S> dh;
    };
    using HiddenProduct<S>::step;

    FUSED_RNN_DEVICE ShownWork(const BackwardStep<S>& s, const Device& device) : HiddenProduct<S>{s}, dev(device) {}
    FUSED_RNN_DEVICE Cell load(int64_t b, int64_t j) const {
        Cell cell{CellMath::load_shown(dev, step, b, j), step.shown(dev, b, j)};
        if (step.goes_on(b)) cell.dh += passed<CellMath>(step, b, j);
        return cell;
    }
    FUSED_RNN_DEVICE void store(int64_t b, int64_t j, const Cell& cell, const ComputeType<S> (&sums)[1]) const {
        CellMath::show(dev, step, b, j, cell.own, cell.dh + arrived<CellMath>(step, b, j, sums[0]));
    }
};

// ... from which the rest of the step follows.
template <class CellMath, class Device, class S>
struct SecondGradientWork : SecondProduct<S> {
    const Device& dev;
    using Cell = typename CellMath::Cell;
    using SecondProduct<S>::step;

    FUSED_RNN_DEVICE SecondGradientWork(const BackwardStep<S>& s, const Device& device)
        : SecondProduct<S>{s}, dev(device) {}
    FUSED_RNN_DEVICE Cell load(int64_t b, int64_t j) const { return CellMath::load(dev, step, b, j); }
    FUSED_RNN_DEVICE void store(int64_t b, int64_t j, const Cell& cell, const ComputeType<S> (&sums)[1]) const {
        CellMath::store(dev, step, b, j, cell, sums[0]);
    }
};

// After all steps: dh0.
template <class CellMath, class Device, class S>
struct InitialWork : HiddenProduct<S> {
    const Device& dev;
    struct Cell {
        ComputeType<S> dh;
    };
    using HiddenProduct<S>::step;

    FUSED_RNN_DEVICE InitialWork(const BackwardStep<S>& s, const Device& device) : HiddenProduct<S>{s}, dev(device) {}
    FUSED_RNN_DEVICE const S* operand(int64_t b) const {
        return step.reads_initial(b) ? step.gates(step.first_row(b)) : nullptr;
    }
    FUSED_RNN_DEVICE Cell load(int64_t b, int64_t j) const {
        return {step.reads_initial(b) ? passed<CellMath>(step, b, j) : ComputeType<S>(0)};
    }
    FUSED_RNN_DEVICE void store(int64_t b, int64_t j, const Cell& cell, const ComputeType<S> (&sums)[1]) const {
        dev.narrow(cell.dh + multiplied<CellMath>(step, b, j, sums[0]), step.a.dh0[step.state(b, step.a.R) + j]);
    }
};

// What one block does of walked steps [grid.first, grid.last); the one after the last is dh0.
template <class CellMath, template <class, int> class Tile, class Device, class S>
FUSED_RNN_DEVICE void backward_loop(const Device& dev, const BackwardArgs<S>& a, const Grid& grid) {
    const Share share(dev.block(), grid, a.seq.B);
    BackwardStep<S> step(a, share.direction);
    GroupBarrier<Device> barrier(dev, a.arrivals + share.group, grid.meets ? grid.parts : 1);
    const HiddenProduct<S> hidden{step};
    const InitialWork<CellMath, Device, S> initial(step, dev);
    Product<Tile<S, 1>, 1, Device> product(dev, grid, share.part, hidden.K(), grid.resident);
    if (grid.resident) product.load_weights(hidden);

    for (int64_t walked = grid.first; walked < grid.last; ++walked) {
        if (walked == a.seq.T) {
            if (a.needs_dh0) product.run(initial, share.b0, share.b1, barrier);
            break;
        }
        step.at(a.seq.T - 1 - walked);
        const int64_t b1 = share.end(a.seq.rows(step.t));
        if constexpr (CellMath::kTwice) {
            if (!CellMath::kOnce || a.two_products) {
                if (grid.phases & 1) {
                    product.run(ShownWork<CellMath, Device, S>(step, dev), share.b0, b1, barrier);
                    barrier.arrive();
                }
                if (grid.phases & 2) {
                    const SecondGradientWork<CellMath, Device, S> rest(step, dev);
                    Product<Tile<S, 1>, 1, Device> second(dev, grid, share.part, a.R, false);
                    second.run(rest, share.b0, b1, barrier);
                    barrier.arrive();
                }
                continue;
            }
        }
        if constexpr (CellMath::kOnce) {
            product.run(HiddenWork<CellMath, Device, S>(step, dev), share.b0, b1, barrier);
            barrier.arrive();
        }
    }
}

}  // namespace fused_rnn::cuda
