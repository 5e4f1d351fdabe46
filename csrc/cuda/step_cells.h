// Loops whose products are made outside, one at a time (Mode::kProducts): the cells behind a product, which are those of the
// other loops, and then the rows that the next product multiplies. A block takes a row of the batch, in one direction.
#pragma once
#include "backward.h"
#include "forward.h"

namespace fused_rnn::cuda {

// The product that is there, and where the next one finds its left factor.
template <class S>
struct MadeProduct {
    int64_t step;                // walked; -1: before all of them, without a product
    int phase;                   // which of the step's products
    const ComputeType<S>* sums;  // rows of [D, B], ld_sums apart
    int64_t ld_sums;
    S* operand;  // likewise
    int64_t ld_operand;
};

template <class S>
struct ForwardCells : ForwardArgs<S> {
    template <class Math>
    using CellMath = typename Math::Forward;
    MadeProduct<S> made;
};
template <class S>
struct BackwardCells : BackwardArgs<S> {
    template <class Math>
    using CellMath = typename Math::Backward;
    MadeProduct<S> made;
};

// All of a loop of T steps, in order: multiply(phase, step) makes a product for all directions, cells() follows with what is
// told in `made`. `closes`: backward, one more product after the last step gives dh0.
template <class S, class Multiply, class Cells>
void each_product(MadeProduct<S> made, int64_t T, int products_a_step, bool closes, const Multiply& multiply,
                  const Cells& cells) {
    made.step = -1;
    made.phase = products_a_step - 1;
    cells(made);
    for (made.step = 0; made.step < T + closes; ++made.step) {
        for (made.phase = 0; made.phase < (made.step < T ? products_a_step : 1); ++made.phase) {
            multiply(made.phase, made.step);
            cells(made);
        }
    }
}

// Row b from its sums.
template <int G, class Work, class Device, class F>
FUSED_RNN_DEVICE void finish_row(const Device& dev, const Work& work, int64_t b, const F* sums) {
    const int none = work.weight(0, 0) ? 0 : 1;  // a coupled gate has no weights: the sums of the others come first
    for (int64_t j = dev.thread(); j < work.columns(); j += dev.threads()) {
        F of[G];
        FUSED_RNN_UNROLL()
        for (int g = 0; g < G; ++g) of[g] = g < none ? F(0) : sums[(g - none) * work.columns() + j];
        work.store(b, j, work.load(b, j), of);
    }
}

template <class Work, class Device, class S>
FUSED_RNN_DEVICE void write_operand(const Device& dev, const Work& work, int64_t b, S* to) {
    const S* const from = work.operand(b);
    for (int64_t k = dev.thread(); k < work.K(); k += dev.threads()) to[k] = from ? from[work.skip(k)] : S{};
}

// f(d, b, sums, operand) for the rows of this block.
template <class Device, class Args, class Function>
FUSED_RNN_DEVICE void each_of_batch(const Device& dev, const Args& a, const Function& f) {
    const auto& made = a.made;
    for (int64_t row = dev.block(); row < a.D * a.seq.B; row += dev.blocks())
        f(row / a.seq.B, row % a.seq.B, made.sums + row * made.ld_sums, made.operand + row * made.ld_operand);
}

template <class CellMath, class Device, class S>
FUSED_RNN_DEVICE void cells_of_step(const Device& dev, const ForwardCells<S>& a) {
    const MadeProduct<S>& made = a.made;
    each_of_batch(dev, a, [&](int64_t d, int64_t b, const ComputeType<S>* sums, S* operand) {
        ForwardStep<S> step(a, d);
        const GatesWork<CellMath, Device, S> gates{dev, step};
        if (made.step >= 0) step.at(made.step);
        const bool takes = made.step >= 0 && b < a.seq.rows(step.t), last = made.phase == (a.two_products ? 1 : 0);
        if (takes && made.phase == 0) finish_row<CellMath::G>(dev, gates, b, sums);
        if constexpr (CellMath::kTwice) {
            const SecondWork<CellMath, Device, S> second{dev, step};
            if (takes && made.phase == 1) finish_row<1>(dev, second, b, sums);
            dev.sync(Sync::kCells);  // the row is there
            if (takes && !last) write_operand(dev, second, b, operand);
        } else {
            dev.sync(Sync::kCells);
        }
        if (!last || made.step + 1 == a.seq.T) return;
        step.at(made.step + 1);
        if (b < a.seq.rows(step.t)) write_operand(dev, gates, b, operand);
    });
}

template <class CellMath, class Device, class S>
FUSED_RNN_DEVICE void cells_of_step(const Device& dev, const BackwardCells<S>& a) {
    const MadeProduct<S>& made = a.made;
    each_of_batch(dev, a, [&](int64_t d, int64_t b, const ComputeType<S>* sums, S* operand) {
        BackwardStep<S> step(a, d);
        const InitialWork<CellMath, Device, S> initial(step, dev);
        if (made.step == a.seq.T) return finish_row<1>(dev, initial, b, sums);
        if (made.step >= 0) step.at(a.seq.T - 1 - made.step);
        const bool takes = made.step >= 0 && b < a.seq.rows(step.t), last = made.phase == (a.two_products ? 1 : 0);
        if constexpr (CellMath::kOnce) {
            const HiddenWork<CellMath, Device, S> hidden(step, dev);
            if (takes && !a.two_products) finish_row<1>(dev, hidden, b, sums);
        }
        if constexpr (CellMath::kTwice) {
            const ShownWork<CellMath, Device, S> shown(step, dev);
            const SecondGradientWork<CellMath, Device, S> rest(step, dev);
            if (takes && a.two_products)
                made.phase == 0 ? finish_row<1>(dev, shown, b, sums) : finish_row<1>(dev, rest, b, sums);
            dev.sync(Sync::kCells);
            if (takes && !last) write_operand(dev, rest, b, operand);
        } else {
            dev.sync(Sync::kCells);
        }
        if (!last) return;
        if (made.step + 1 == a.seq.T) {
            if (a.needs_dh0) write_operand(dev, initial, b, operand);
            return;
        }
        step.at(a.seq.T - 2 - made.step);
        if (b < a.seq.rows(step.t)) write_operand(dev, HiddenProduct<S>{step}, b, operand);
    });
}

}  // namespace fused_rnn::cuda
