// The backward time loop: for each step, last first, dh of the step is dg W_hh of the step after (in walking order) plus
// what y and hn send; the cell turns it into dg. With a projection, dr comes between: dr = dg W_hh + dy, dh = dr W_hr.
// One more product after the last step gives dh0; where episodes begin from h0 too, it is made outside (SumsArgs, rows.h).
#pragma once
#include "product.h"
#include "walk.h"

namespace fused_rnn::cuda {

// A step of one direction: what it reads.
template <class S>
struct BackwardStep : Walk<BackwardArgs<S>> {
    using Walk<BackwardArgs<S>>::a;
    using Walk<BackwardArgs<S>>::d;
    const int64_t width;  // of a row of dg

    FUSED_RNN_DEVICE BackwardStep(const BackwardArgs<S>& args, int64_t direction)
        : Walk<BackwardArgs<S>>(args, direction), width(gradient_blocks(args.cell) * args.H) {}

    FUSED_RNN_DEVICE S* gates(int64_t n) const { return a.dg[d] + n * width; }
    // dg of the step after, none where the row or its episode ended.
    FUSED_RNN_DEVICE const S* later_gates(int64_t b) const {
        return this->goes_on(b) ? gates(this->row_after(b)) : nullptr;
    }
    // Whether h0 reaches the first step that row b takes.
    FUSED_RNN_DEVICE bool reads_initial(int64_t b) const { return d || !this->marked(b, 0); }
    // That step's row: in a reverse direction rows begin at their own lengths.
    FUSED_RNN_DEVICE int64_t first_row(int64_t b) const {
        int64_t first = 0;
        if (d) {
            int64_t end = a.seq.T;  // the row is there at step `first`, and no more at `end`
            while (end - first > 1) {
                const int64_t middle = (first + end) / 2;
                (a.seq.rows(middle) > b ? first : end) = middle;
            }
        }
        return a.seq.row(first) + b;
    }
    // What goes to the state before, at `at` of [D, B, H], goes to the initial one too where an episode begins from that.
    FUSED_RNN_DEVICE void sum(int64_t b, int64_t at, ComputeType<S> d) const {
        if (a.sums && this->starts(b)) a.sums[at] += d;
    }
    // What has reached the initial state when row b takes its first step.
    FUSED_RNN_DEVICE ComputeType<S> reaches_initial(int64_t b, int64_t at, ComputeType<S> d) const {
        return a.sums ? a.sums[at] : this->anew(b) ? ComputeType<S>(0) : d;
    }
    // What y and hn send to the shown h.
    template <class Device>
    FUSED_RNN_DEVICE ComputeType<S> shown(const Device& dev, int64_t b, int64_t j) const {
        ComputeType<S> dh = a.dy ? dev.widen(a.dy[this->output(this->row(b)) + j]) : ComputeType<S>(0);
        if (this->ends(b) && a.dhn) dh += dev.widen(a.dhn[this->state(b, a.R) + j]);
        return dh;
    }
};

// The cells: from dh of a step to dg, and what goes to the step before beside the product.
template <template <class> class ActT, class S>
struct LstmBackward {
    static constexpr bool kProjects = true;
    using F = ComputeType<S>;
    struct Cell {
        F i, f, g, o, c, c_before, dc;
    };

    template <class Device>
    static FUSED_RNN_DEVICE Cell load(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j) {
        const BackwardArgs<S>& a = step.a;
        const int64_t H = a.H, at = step.state(b, H) + j;
        const Saved<const S>& saved = a.saved[step.d];
        const S* s = saved.gates_of(step.row(b)) + j;
        const F c = dev.widen(saved.state_of(step.row(b))[j]);
        Cell cell{dev.widen(s[0]), dev.widen(s[H]), dev.widen(s[2 * H]), dev.widen(s[3 * H]), c, 0, 0};
        cell.c_before =
            step.starts(b) ? step.start(dev, a.c0, b, H, j) : dev.widen(saved.state_of(step.row_before(b))[j]);
        if (step.goes_on(b)) {
            cell.dc = a.carry[at];
        } else if (step.ends(b) && a.dcn) {
            cell.dc = dev.widen(a.dcn[at]);
        }
        if (a.dcells) cell.dc += dev.widen(a.dcells[(step.row(b) * a.D + step.d) * H + j]);
        return cell;
    }
    template <class Device>
    static FUSED_RNN_DEVICE void store(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j,
                                       const Cell& s, F dh) {
        const LstmGrad<F> grad = lstm_step_grad<ActT<F>, F>(s.i, s.f, s.g, s.o, s.c, s.c_before, dh, s.dc);
        const int64_t H = step.a.H, at = step.state(b, H) + j;
        step.a.carry[at] = grad.c_prev;
        step.sum(b, at, grad.c_prev);
        if (step.begins(b)) dev.narrow(step.reaches_initial(b, at, grad.c_prev), step.a.dc0[at]);
        S* to = step.gates(step.row(b)) + j;
        dev.narrow(grad.i, to[0]);
        dev.narrow(grad.f, to[H]);
        dev.narrow(grad.g, to[2 * H]);
        dev.narrow(grad.o, to[3 * H]);
    }
    // What goes by the product to the step before.
    static FUSED_RNN_DEVICE F passed(const BackwardStep<S>&, int64_t, int64_t) { return 0; }
};

template <template <class> class ActT, class S>
struct GruBackward {
    static constexpr bool kProjects = false;
    using F = ComputeType<S>;
    struct Cell {
        F r, z, n, hn, h_before;
    };

    template <class Device>
    static FUSED_RNN_DEVICE Cell load(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j) {
        const BackwardArgs<S>& a = step.a;
        const int64_t H = a.H;
        const Saved<const S>& saved = a.saved[step.d];
        const S* s = saved.gates_of(step.row(b)) + j;
        return {dev.widen(s[0]), dev.widen(s[H]), dev.widen(s[2 * H]), dev.widen(s[3 * H]),
                step.starts(b) ? step.start(dev, a.h0, b, H, j) : dev.widen(saved.state_of(step.row_before(b))[j])};
    }
    template <class Device>
    static FUSED_RNN_DEVICE void store(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j,
                                       const Cell& s, F dh) {
        const GruGrad<F> grad = gru_step_grad<ActT<F>, F>(s.r, s.z, s.n, s.hn, s.h_before, dh);
        const int64_t H = step.a.H;
        const int64_t at = step.state(b, H) + j;
        step.a.carry[at] = grad.h_prev;
        step.sum(b, at, grad.h_prev);
        S* to = step.gates(step.row(b)) + j;
        dev.narrow(grad.r, to[0]);
        dev.narrow(grad.z, to[H]);
        dev.narrow(grad.n, to[2 * H]);
        dev.narrow(grad.hn, to[3 * H]);
    }
    static FUSED_RNN_DEVICE F passed(const BackwardStep<S>& step, int64_t b, int64_t j) {
        return step.a.carry[step.state(b, step.a.H) + j];
    }
};

template <template <class> class ActT, class S>
struct RnnBackward {
    static constexpr bool kProjects = false;
    using F = ComputeType<S>;
    struct Cell {
        F h;
    };

    template <class Device>
    static FUSED_RNN_DEVICE Cell load(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j) {
        return {dev.widen(step.a.saved[step.d].state_of(step.row(b))[j])};
    }
    template <class Device>
    static FUSED_RNN_DEVICE void store(const Device& dev, const BackwardStep<S>& step, int64_t b, int64_t j,
                                       const Cell& s, F dh) {
        dev.narrow(rnn_step_grad<ActT<F>, F>(s.h, dh), step.gates(step.row(b))[j]);
    }
    static FUSED_RNN_DEVICE F passed(const BackwardStep<S>&, int64_t, int64_t) { return 0; }
};

// dg W_hh, whatever follows: gates lie in dg's rows in torch's order, but for a GRU's n, whose hidden side is apart.
template <class S>
struct HiddenProduct {
    const BackwardStep<S>& step;

    FUSED_RNN_DEVICE int64_t K() const { return gates_of(step.a.cell) * step.a.H; }
    FUSED_RNN_DEVICE int64_t columns() const { return step.a.R; }
    FUSED_RNN_DEVICE int64_t skip(int64_t k) const { return hidden_column(step.a.cell, step.a.H, k); }
    FUSED_RNN_DEVICE const S* weight(int, int64_t j) const { return step.a.w_hh_t[step.d] + j * K(); }
    FUSED_RNN_DEVICE bool copies16() const { return step.a.first_copies16; }
};

// The product of a step without a projection: its sum is dh.
template <class CellMath, class Device, class S>
struct HiddenWork : HiddenProduct<S> {
    const Device& dev;
    struct Cell {
        typename CellMath::Cell own;
        ComputeType<S> dh;
    };
    using HiddenProduct<S>::step;

    FUSED_RNN_DEVICE HiddenWork(const BackwardStep<S>& s, const Device& device) : HiddenProduct<S>{s}, dev(device) {}
    FUSED_RNN_DEVICE const S* operand(int64_t b) const { return step.later_gates(b); }
    FUSED_RNN_DEVICE Cell load(int64_t b, int64_t j) const {
        Cell cell{CellMath::load(dev, step, b, j), step.shown(dev, b, j)};
        if (step.goes_on(b)) cell.dh += CellMath::passed(step, b, j);
        return cell;
    }
    FUSED_RNN_DEVICE void store(int64_t b, int64_t j, const Cell& cell, const ComputeType<S> (&sums)[1]) const {
        CellMath::store(dev, step, b, j, cell.own, cell.dh + sums[0]);
    }
};

// With a projection the sum, with what is shown, is dr.
template <class Device, class S>
struct ShownWork : HiddenProduct<S> {
    const Device& dev;
    struct Cell {
        ComputeType<S> dr;
    };
    using HiddenProduct<S>::step;

    FUSED_RNN_DEVICE ShownWork(const BackwardStep<S>& s, const Device& device) : HiddenProduct<S>{s}, dev(device) {}
    FUSED_RNN_DEVICE const S* operand(int64_t b) const { return step.later_gates(b); }
    FUSED_RNN_DEVICE Cell load(int64_t b, int64_t j) const { return {step.shown(dev, b, j)}; }
    FUSED_RNN_DEVICE void store(int64_t b, int64_t j, const Cell& cell, const ComputeType<S> (&sums)[1]) const {
        dev.narrow(cell.dr + sums[0], step.a.dr[step.d][step.row(b) * step.a.R + j]);
    }
};

// ... from which dh follows.
template <class CellMath, class Device, class S>
struct UnprojectedWork {
    const Device& dev;
    const BackwardStep<S>& step;
    using Cell = typename CellMath::Cell;

    FUSED_RNN_DEVICE int64_t K() const { return step.a.R; }
    FUSED_RNN_DEVICE int64_t columns() const { return step.a.H; }
    FUSED_RNN_DEVICE const S* operand(int64_t b) const { return step.a.dr[step.d] + step.row(b) * K(); }
    FUSED_RNN_DEVICE int64_t skip(int64_t k) const { return k; }
    FUSED_RNN_DEVICE const S* weight(int, int64_t j) const { return step.a.w_hr_t[step.d] + j * K(); }
    FUSED_RNN_DEVICE bool copies16() const { return step.a.second_copies16; }
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
        return {step.reads_initial(b) ? CellMath::passed(step, b, j) : ComputeType<S>(0)};
    }
    FUSED_RNN_DEVICE void store(int64_t b, int64_t j, const Cell& cell, const ComputeType<S> (&sums)[1]) const {
        dev.narrow(cell.dh + sums[0], step.a.dh0[step.state(b, step.a.R) + j]);
    }
};

// What one block does of walked steps [grid.first, grid.last); the one after the last is dh0.
template <class CellMath, template <class, int> class Tile, class Device, class S>
FUSED_RNN_DEVICE void backward_loop(const Device& dev, const BackwardArgs<S>& a, const Grid& grid) {
    const Share share(dev.block(), grid, a.seq.B);
    BackwardStep<S> step(a, share.direction);
    GroupBarrier<Device> barrier(dev, a.arrivals + share.group, grid.meets ? grid.parts : 1);
    const HiddenWork<CellMath, Device, S> hidden(step, dev);
    const InitialWork<CellMath, Device, S> initial(step, dev);
    Product<Tile<S, 1>, 1, Device> product(dev, grid, share.part, hidden.K(), grid.resident);
    if (grid.resident) product.load_weights(hidden);

    for (int64_t walked = grid.first; walked < grid.last; ++walked) {
        if (walked == a.seq.T) {
            if (a.needs_dh0) product.run(initial, share.b0, share.b1, barrier);
            break;
        }
        step.at(a.seq.T - 1 - walked);
        const int64_t rows = a.seq.rows(step.t);
        const int64_t b1 = rows < share.b1 ? rows : share.b1;
        if constexpr (CellMath::kProjects) {
            if (a.projected) {
                if (grid.phases & 1) {
                    product.run(ShownWork<Device, S>(step, dev), share.b0, b1, barrier);
                    barrier.arrive();
                }
                if (grid.phases & 2) {
                    const UnprojectedWork<CellMath, Device, S> unprojected{dev, step};
                    Product<Tile<S, 1>, 1, Device> second(dev, grid, share.part, a.R, false);
                    second.run(unprojected, share.b0, b1, barrier);
                    barrier.arrive();
                }
                continue;
            }
        }
        product.run(hidden, share.b0, b1, barrier);
        barrier.arrive();
    }
}

}  // namespace fused_rnn::cuda
