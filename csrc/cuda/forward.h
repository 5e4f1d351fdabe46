// The forward time loop of one layer, all directions: for each step h W_hh^T and the cell behind it, then, with a
// projection, h_full W_hr^T. Blocks of one slice of the batch meet at its barrier after each product.
#pragma once
#include "product.h"
#include "walk.h"

namespace fused_rnn::cuda {

// A step of one direction: what it reads and where it shows its h.
template <class S>
struct ForwardStep : Walk<ForwardArgs<S>> {
    using Walk<ForwardArgs<S>>::Walk;
    using Walk<ForwardArgs<S>>::a;
    using Walk<ForwardArgs<S>>::d;

    // h of the step before; null where it is zero.
    FUSED_RNN_DEVICE const S* h_before(int64_t b) const {
        return this->starts(b) ? this->start(a.h0, b, a.R) : a.y + this->output(this->row_before(b));
    }
    template <class Device, class F>
    FUSED_RNN_DEVICE void show(const Device& dev, int64_t b, int64_t j, F h) const {
        dev.narrow(h, a.y[this->output(this->row(b)) + j]);
        if (this->ends(b)) dev.narrow(h, a.hn[this->state(b, a.R) + j]);
    }
    // Pre-activation of gate g of G but for the recurrent product; `hidden`: b_hh belongs inside another product.
    template <class Device>
    FUSED_RNN_DEVICE ComputeType<S> input(const Device& dev, int64_t b, int g, int G, int64_t j, bool hidden) const {
        const int64_t k = g * a.H + j;
        ComputeType<S> x = a.gx[d][this->row(b) * G * a.H + k];
        if (a.b_ih[d]) x += dev.widen(a.b_ih[d][k]);
        if (a.b_hh[d] && !hidden) x += dev.widen(a.b_hh[d][k]);
        return x;
    }
};

// The cells: what they load before and do after the sums of a step.
template <template <class> class ActT, class S>
struct LstmForward {
    static constexpr int G = 4;
    static constexpr bool kProjects = true;
    using F = ComputeType<S>;
    struct Cell {
        F x[4], c;
    };

    template <class Device>
    static FUSED_RNN_DEVICE Cell load(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j) {
        Cell cell;
        FUSED_RNN_UNROLL()
        for (int g = 0; g < 4; ++g) cell.x[g] = step.input(dev, b, g, G, j, false);
        const int64_t at = step.state(b, step.a.H) + j;
        cell.c = step.starts(b) ? step.start(dev, step.a.c0, b, step.a.H, j) : step.a.carry[at];
        return cell;
    }
    template <class Device>
    static FUSED_RNN_DEVICE F store(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j,
                                    const Cell& cell, const F (&sums)[4]) {
        const LstmStep<F> s = lstm_step<ActT<F>, F>(cell.x[0] + sums[0], cell.x[1] + sums[1], cell.x[2] + sums[2],
                                                    cell.x[3] + sums[3], cell.c);
        const int64_t H = step.a.H, at = step.state(b, H) + j;
        step.a.carry[at] = s.c;
        if (step.ends(b)) dev.narrow(s.c, step.a.cn[at]);
        const Saved<S>& saved = step.a.saved[step.d];
        if (saved.gates) {
            S* to = saved.gates_of(step.row(b)) + j;
            dev.narrow(s.i, to[0]);
            dev.narrow(s.f, to[H]);
            dev.narrow(s.g, to[2 * H]);
            dev.narrow(s.o, to[3 * H]);
        }
        if (saved.states) dev.narrow(s.c, saved.state_of(step.row(b))[j]);
        return s.h;
    }
};

template <template <class> class ActT, class S>
struct GruForward {
    static constexpr int G = 3;
    static constexpr bool kProjects = false;
    using F = ComputeType<S>;
    struct Cell {
        F r, z, n, hn, h;
    };

    template <class Device>
    static FUSED_RNN_DEVICE Cell load(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j) {
        const int64_t H = step.a.H, at = step.state(b, H) + j;
        const S* b_hh = step.a.b_hh[step.d];
        return {step.input(dev, b, 0, G, j, false), step.input(dev, b, 1, G, j, false),
                step.input(dev, b, 2, G, j, true), b_hh ? dev.widen(b_hh[2 * H + j]) : F(0),
                step.starts(b) ? step.start(dev, step.a.h0, b, H, j) : step.a.carry[at]};
    }
    template <class Device>
    static FUSED_RNN_DEVICE F store(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j,
                                    const Cell& cell, const F (&sums)[3]) {
        const F hn = cell.hn + sums[2];
        const GruStep<F> s = gru_step<ActT<F>, F>(cell.r + sums[0], cell.z + sums[1], cell.n, hn, cell.h);
        const int64_t H = step.a.H;
        step.a.carry[step.state(b, H) + j] = s.h;
        const Saved<S>& saved = step.a.saved[step.d];
        if (saved.gates) {
            S* to = saved.gates_of(step.row(b)) + j;
            dev.narrow(s.r, to[0]);
            dev.narrow(s.z, to[H]);
            dev.narrow(s.n, to[2 * H]);
            dev.narrow(hn, to[3 * H]);
        }
        return s.h;
    }
};

template <template <class> class ActT, class S>
struct RnnForward {
    static constexpr int G = 1;
    static constexpr bool kProjects = false;
    using F = ComputeType<S>;
    struct Cell {
        F x;
    };

    template <class Device>
    static FUSED_RNN_DEVICE Cell load(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j) {
        return {step.input(dev, b, 0, G, j, false)};
    }
    template <class Device>
    static FUSED_RNN_DEVICE F store(const Device& dev, const ForwardStep<S>& step, int64_t b, int64_t j,
                                    const Cell& cell, const F (&sums)[1]) {
        return rnn_step<ActT<F>, F>(cell.x + sums[0]);
    }
};

// The first product of a step.
template <class CellMath, class Device, class S>
struct GatesWork {
    using Cell = typename CellMath::Cell;
    const Device& dev;
    const ForwardStep<S>& step;

    FUSED_RNN_DEVICE int64_t K() const { return step.a.R; }
    FUSED_RNN_DEVICE int64_t columns() const { return step.a.H; }
    FUSED_RNN_DEVICE const S* operand(int64_t b) const { return step.h_before(b); }
    FUSED_RNN_DEVICE int64_t skip(int64_t k) const { return k; }
    FUSED_RNN_DEVICE const S* weight(int g, int64_t j) const { return step.a.w_hh[step.d] + (g * step.a.H + j) * K(); }
    FUSED_RNN_DEVICE bool copies16() const { return step.a.first_copies16; }
    FUSED_RNN_DEVICE Cell load(int64_t b, int64_t j) const { return CellMath::load(dev, step, b, j); }
    FUSED_RNN_DEVICE void store(int64_t b, int64_t j, const Cell& cell,
                                const ComputeType<S> (&sums)[CellMath::G]) const {
        const ComputeType<S> h = CellMath::store(dev, step, b, j, cell, sums);
        if constexpr (CellMath::kProjects) {
            if (step.a.projected) return dev.narrow(h, step.a.h_full[step.state(b, step.a.H) + j]);
        }
        step.show(dev, b, j, h);
    }
};

// The second, of a projected LSTM: r = W_hr h is what the layer shows and feeds back.
template <class Device, class S>
struct ProjectionWork {
    struct Cell {};
    const Device& dev;
    const ForwardStep<S>& step;

    FUSED_RNN_DEVICE int64_t K() const { return step.a.H; }
    FUSED_RNN_DEVICE int64_t columns() const { return step.a.R; }
    FUSED_RNN_DEVICE const S* operand(int64_t b) const { return step.a.h_full + step.state(b, K()); }
    FUSED_RNN_DEVICE int64_t skip(int64_t k) const { return k; }
    FUSED_RNN_DEVICE const S* weight(int, int64_t j) const { return step.a.w_hr[step.d] + j * K(); }
    FUSED_RNN_DEVICE bool copies16() const { return step.a.second_copies16; }
    FUSED_RNN_DEVICE Cell load(int64_t, int64_t) const { return {}; }
    FUSED_RNN_DEVICE void store(int64_t b, int64_t j, const Cell&, const ComputeType<S> (&sums)[1]) const {
        step.show(dev, b, j, sums[0]);
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
        const int64_t rows = a.seq.rows(step.t);
        const int64_t b1 = rows < share.b1 ? rows : share.b1;
        if (grid.phases & 1) {
            product.run(gates, share.b0, b1, barrier);
            barrier.arrive();
        }
        if constexpr (CellMath::kProjects) {
            if (!a.projected || !(grid.phases & 2)) continue;
            const ProjectionWork<Device, S> projection{dev, step};
            Product<Tile<S, 1>, 1, Device> second(dev, grid, share.part, a.H, false);
            second.run(projection, share.b0, b1, barrier);
            barrier.arrive();
        }
    }
}

}  // namespace fused_rnn::cuda
