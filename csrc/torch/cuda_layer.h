// A layer on an accelerator: its tensors as the kernels want them, and its time loop planned and launched.
#pragma once
#include "cuda_products.h"
#include "ops.h"

namespace fused_rnn::cuda {

// One call of an op. Everything is queued on torch's current stream, nothing waits for the device.
template <class S>
class LayerCall {
  public:
    using F = ComputeType<S>;

    // tf32: whether f32 factors may be rounded to that.
    LayerCall(const Layer& layer, bool tf32) : l(layer), place(place_of(layer.x)), device(place), tf32_(tf32) {
        if (l.packed) write_out_steps();
    }

    const Layer& l;
    const Place place;
    const OnDevice device;

    Tensor empty(std::initializer_list<int64_t> sizes) const { return empty_at(place, sizes, l.type); }
    Tensor empty_wide(std::initializer_list<int64_t> sizes) const { return empty_at(place, sizes, scalar_type<F>()); }
    Tensor nothing() const { return empty({0}); }

    // With step sizes and offsets on the device.
    Sequence sequence() const {
        if (!steps_) return l.seq;
        const int64_t* steps = data_of<int64_t>(*steps_);
        return {l.T, l.B, steps, steps + l.T};
    }

    // x as a matrix of N rows.
    Tensor x_rows() const {
        if (l.x_is_matrix()) return Matrix<const S>{data_of<S>(l.x), l.N, l.I, l.x_matrix_row(), 1}.tensor(place);
        const Tensor rows = laid_out(l.x);
        x_copy_ = rows;
        return Matrix<const S>{data_of<S>(rows), l.N, l.I, l.I, 1}.tensor(place);
    }

    // What the kernels are told of a cell that is not torch's, but for w_ch. Each pass keeps its own tensors.
    bool varies() const { return is_linear(l.cell) || !l.variant.plain() || l.variant.recurrent_dropout > 0; }
    void fill(Varied<S>& to, const std::optional<Tensor>& mask) const {
        to.varies = varies();
        to.variant = with_activations(l.cell, l.variant);
        to.seeds = l.seeds;
        if (mask) to.mask = data_of<F>(*mask);
    }
    // What the time loops of both passes are told.
    template <class Args>
    void describe(Args& to, const Tensor& h0, const std::optional<Tensor>& mask) const {
        to.seq = sequence();
        to.cell = l.cell;
        to.D = l.D;
        to.N = l.N;
        to.H = l.H;
        to.R = l.R;
        to.two_products = l.two_products;
        to.h0 = data_of<S>(h0);
        to.reset = l.begins;
        to.reset_initial = l.reset_initial;
        fill(to, mask);
    }
    // Recurrent dropout's, [D, B, R]; none where nothing is drawn.
    std::optional<Tensor> recurrent_mask() const {
        if (!l.seeds || l.variant.recurrent_dropout == 0) return {};
        const Tensor mask = empty_wide({l.D, l.B, l.R});
        over_rows(MaskArgs<S>{l.D * l.B, l.R, l.seeds, l.variant.recurrent_dropout, mutable_data_of<F>(mask)},
                  device.stream());
        return mask;
    }
    // h0, or its gradient, as W_hh sees it or sends it: [D, B, R].
    Tensor masked(const Tensor& h, const Tensor& mask) const {
        const Tensor to = empty({l.D, l.B, l.R});
        over_rows(MaskedArgs<S>{l.D * l.B, l.R, data_of<S>(h), data_of<F>(mask), mutable_data_of<S>(to)},
                  device.stream());
        return to;
    }

    template <class Args, class Launch>
    void run_loop(Args& args, bool backward, bool rowwise, const Launch& launch) const {
        const int64_t gates = backward || rowwise ? gates_of_h(l.cell, l.variant) : multiplied_gates(l.cell, l.variant);
        const LoopShape shape{static_cast<int>(gates),
                              backward,
                              l.T,
                              l.B,
                              l.D,
                              l.H,
                              l.two_products ? l.R : 0,
                              static_cast<int>(sizeof(S)),
                              sizeof(S) == 2 || (sizeof(S) == 4 && tf32_),
                              rowwise,
                              !varies()};
        const Plan p = plan(shape, device_limits());
        if (p.mode == Mode::kProducts) return run_products(args);
        std::optional<Tensor> arrivals;
        if (p.grid.meets) {
            arrivals = empty_at(place, {l.D * p.grid.slices}, ScalarType::Int);
            TORCH_ERROR_CODE_CHECK(aoti_torch_zero_(arrivals->get()));
            args.arrivals = mutable_data_of<unsigned>(*arrivals);
        }
        launch(args, p, device.stream());
    }

  private:
    void run_products(const ForwardArgs<S>& args) const { run_products<ForwardCells<S>>(args, false, false); }
    void run_products(const BackwardArgs<S>& args) const { run_products<BackwardCells<S>>(args, true, args.needs_dh0); }
    template <class Cells, class Args>
    void run_products(const Args& args, bool backward, bool needs_dh0) const {
        StepProducts<S>(l, place, backward).run(needs_dh0, [&](const MadeProduct<S>& made) {
            const Cells cells{args, made};
            args.varies ? step_cells<S, true>(cells, device.stream()) : step_cells<S, false>(cells, device.stream());
        });
    }

    // Of a packed sequence, as runs of steps with the same number of rows.
    void write_out_steps() {
        steps_ = empty_at(place, {2, l.T}, ScalarType::Long);
        int64_t* batch_sizes = mutable_data_of<int64_t>(*steps_);
        Runs runs{};
        for (int64_t t = 0; t < l.T;) {
            int64_t end = t + 1;
            while (end < l.T && l.seq.rows(end) == l.seq.rows(t)) ++end;
            runs.at[runs.count++] = {t, end, l.seq.rows(t), l.seq.row(t)};
            t = end;
            if (runs.count == Runs::kCapacity || t == l.T) {
                write_steps(runs, batch_sizes, batch_sizes + l.T, device.stream());
                runs.count = 0;
            }
        }
    }

    const bool tf32_;
    std::optional<Tensor> steps_;
    mutable std::optional<Tensor> x_copy_;
};

// Whether `count` elements of S are whole 16-byte pieces, and p the beginning of one.
template <class S>
bool in_pieces(int64_t count) {
    return count * static_cast<int64_t>(sizeof(S)) % kVectorBytes == 0;
}
template <class S>
bool in_pieces(const S* p) {
    return reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0;
}

}  // namespace fused_rnn::cuda
