// The backward ops: for each piece of time, last first, the time loop gives the gradients of the
// gate pre-activations (dg); what is not sequential follows as products over the piece:
//   dx = dg W_ih,  dW_ih = dg^T x,  dW_hh = dg^T h_before,  db = sum of dg,  dW_hr = dr^T (o tanh c)
// Where the forward kept states only, a piece begins with its gates (cpu_rebuild.h).
#include <algorithm>

#include "cpu_before.h"
#include "cpu_rebuild.h"
#include "cpu_reset.h"
#include "cpu_sums.h"
#include "ops.h"

namespace fused_rnn {
namespace {

constexpr int64_t kChunkBytes = 4 << 20;
constexpr int64_t kChunkRows = 1024;

template <class F, class S>
struct BackwardDirection {
    Buffer<F> dh, dc, c0, dh_reset, dc_reset, dgx, dgh, dr, unprojected, cells;
    Compute<F, S> h0, w_ch;
    Weight<F, S> w_ih, w_hh, w_hr;
    Packed<F, S> packed_hh, packed_hr;
    TileProduct<F, S> tile_ih;
    std::optional<GateRebuild<F, S>> rebuild;
    StateBefore<F, S> h_before, c_before;
    ResetState<F, S> reset;
    cpu::BackwardArgs<F, S> args{};
    bool weights_begun = false;
};

template <class F, class S>
class BackwardPass {
  public:
    // `gates_only`: keep dg of the whole sequence, skip what would follow from it.
    BackwardPass(const Layer& layer, const LayerArgs& in, const Gradients& grads, int64_t needs, bool gates_only,
                 bool split_f32)
        : layer_(layer),
          pool_(torch_pool()),
          k_(cpu::kernels<F, S>()),
          x_(k_, layer),
          needs_(needs),
          gates_only_(gates_only),
          saved_(laid_out(grads.saved)) {
        tiles_ = tiles_for<F, S>(layer, split_f32);
        loop_tiles_ = loop_tiles_for<F, S>(layer, tiles_);
        direct_ = !loop_tiles_ && walks_unpacked(layer);
        loop_ = loop_tiles_ ? loop_tiles_->backward_loop : k_.backward_loop;
        if (tiles_) gradient_ = TileGradient<F, S>(pool_, *tiles_);
        if (grads.dy) dy_ = laid_out(*grads.dy);
        if (is_lstm(layer.cell)) y_ = laid_out(grads.y);
        for (int64_t d = 0; d < layer.D; ++d) prepare(d, in, grads);
        const int64_t per = layer.per_direction;
        if (needs & kDx)
            dx_ = layer.packed ? Result<F, S>({layer.N, layer.I}, layer.N * layer.I)
                               : Result<F, S>({layer.T, layer.B, layer.I}, layer.N * layer.I);
        for (int64_t k = 0; k < layer.D * per; ++k) {
            if (!(needs >> (kFirstWeight + k) & 1)) continue;
            const Tensor& w = in.weights[k];
            dweights_[k] =
                w.dim() == 1 ? Result<F, S>({w.size(0)}, w.numel()) : Result<F, S>({w.size(0), w.size(1)}, w.numel());
        }
    }

    void run() {
        const int64_t row_bytes = layer_.G * layer_.H * static_cast<int64_t>(sizeof(F));
        const int64_t rows = gates_only_ ? layer_.N : std::max(kChunkRows, kChunkBytes / row_bytes);
        const auto bounds = layer_.chunks(rows);
        const size_t pieces = bounds.size() - 1;
        std::vector<char> dx_begun(pieces, 0);
        for (size_t piece = 0; piece < pieces; ++piece) {
            size_t index[kMaxDirections];
            for (int64_t d = 0; d < layer_.D; ++d) {
                index[d] = d == 0 ? pieces - 1 - piece : piece;
                begin_piece(d, bounds[index[d]], bounds[index[d] + 1]);
            }
            if (direct_) {
                for (int64_t d = 0; d < layer_.D; ++d) direct_loop(d);
            } else {
                cpu::run_loop(
                    pool_,
                    loop_size<S>(layer_, dir_[0].packed_hh, dir_[0].packed_hr, t1_[0] - t0_[0], loop_tiles_ != nullptr),
                    team_work, this);
            }
            if (gates_only_) continue;
            for (int64_t d = 0; d < layer_.D; ++d) {
                input_gradient(d, dx_begun[index[d]]);
                dx_begun[index[d]] = 1;
                weight_gradients(d);
            }
        }
        for (int64_t d = 0; d < layer_.D; ++d) {
            BackwardDirection<F, S>& to = dir_[d];
            add_reset(to.args, to.dh, to.args.ld_dh, to.dh_reset);
            if (is_lstm(layer_.cell)) add_reset(to.args, to.dc, to.args.ld_c, to.dc_reset);
        }
    }

    // No rows at all: weights still get their gradient, zero.
    void zero() {
        for (auto& result : dweights_)
            if (result) result.zero();
    }

    Tensor dx() { return dx_.finish(pool_, k_); }
    Tensor dh0() { return state_gradient(needs_ & kDh0, layer_.R, &BackwardDirection<F, S>::dh); }
    Tensor dc0() { return state_gradient(needs_ & kDc0, layer_.H, &BackwardDirection<F, S>::dc); }
    std::vector<Tensor> dweights() {
        std::vector<Tensor> out;
        for (int64_t k = 0; k < layer_.D * layer_.per_direction; ++k) out.push_back(dweights_[k].finish(pool_, k_));
        return out;
    }

    // `columns` of every direction's rows, side by side: [N, D*columns].
    Tensor all_rows(Buffer<F> BackwardDirection<F, S>::* rows, int64_t ld, int64_t from, int64_t columns) {
        const Tensor out = empty({layer_.N, layer_.D * columns}, layer_.type);
        for (int64_t d = 0; d < layer_.D; ++d)
            k_.copy_out((dir_[d].*rows).data() + from, ld, layer_.N, columns, mutable_data_of<S>(out) + d * columns,
                        layer_.D * columns);
        return out;
    }

  private:
    void prepare(int64_t d, const LayerArgs& in, const Gradients& grads) {
        const Layer& l = layer_;
        BackwardDirection<F, S>& to = dir_[d];
        cpu::BackwardArgs<F, S>& a = to.args;
        const DirectionWeights& w = l.weights[d];
        if (needs_ & kDx) to.w_ih = Weight<F, S>(pool_, k_, *w.w_ih);
        if (direct_) {
            to.w_hh = Weight<F, S>(pool_, k_, *w.w_hh);
            if (l.projected) to.w_hr = Weight<F, S>(pool_, k_, *w.w_hr);
        } else {
            to.packed_hh = Packed<F, S>(pool_, k_, loop_tiles_, *w.w_hh, 1, false);
            if (l.projected) to.packed_hr = Packed<F, S>(pool_, k_, loop_tiles_, *w.w_hr, 1, false);
        }
        if (tiles_ && needs_ & kDx) to.tile_ih = TileProduct<F, S>(pool_, k_, *tiles_, *w.w_ih, false);
        const bool sums_resets = l.begins && l.reset_initial;
        to.dh = gradient_buffer(grads.dhn, d, l.R);
        to.h0 = Compute<F, S>(k_, in.h0, l.D * l.B, l.R);
        if (sums_resets) to.dh_reset = gradient_buffer({}, d, l.R);
        if (is_lstm(l.cell)) {
            to.dc = gradient_buffer(grads.dcn, d, l.H);
            to.c0 = state_buffer(k_, *in.c0, d, l.B, l.H);
            if (sums_resets) to.dc_reset = gradient_buffer({}, d, l.H);
        }
        to.reset = ResetState<F, S>(k_, l, in, d);
        a.seq = l.seq;
        a.cell = l.cell;
        a.variant = resolved(l.cell, l.variant);
        a.H = l.H;
        a.R = l.R;
        a.reverse = d == 1;
        a.projected = l.projected;
        a.dy = dy_ ? data_of<S>(*dy_) + d * l.R : nullptr;
        a.ld_dy = l.D * l.R;
        a.saved = saved_direction<const S>(l, saved_, d);
        if (l.N > 0 && saved_gates_of(l.cell) && !a.saved.gates) to.rebuild.emplace(pool_, k_, tiles_, l, w);
        a.h0 = to.h0.data() + d * l.B * l.R;
        a.ld_h0 = l.R;
        a.c0 = to.c0.data();
        a.ld_c = cpu::padded(l.H);
        a.dh = to.dh.data();
        a.ld_dh = cpu::padded(l.R);
        a.dc = to.dc.data();
        a.ld_dg = l.G * l.H;
        a.ld_dr = l.R;
        a.w_hh = to.packed_hh.panels();
        a.w_hr = to.packed_hr.panels();
        a.reset = to.reset.args();
        a.dh_reset = to.dh_reset.data();
        a.dc_reset = to.dc_reset.data();
        to.w_ch = peepholes(k_, w);
        a.w_ch = to.w_ch.data();
        const S* h = is_lstm(l.cell) ? data_of<S>(*y_) + d * l.R : a.saved.states;
        to.h_before = {h, is_lstm(l.cell) ? l.D * l.R : a.saved.ld_states, l.R, a.h0, a.ld_h0, a.reset.h, a.reset.ld_h};
        to.c_before = {a.saved.states, a.saved.ld_states, l.H, a.c0, a.ld_c, a.reset.c, a.reset.ld_c};
    }

    Buffer<F> gradient_buffer(const OptionalTensor& grad, int64_t d, int64_t width) {
        if (grad) return state_buffer(k_, *grad, d, layer_.B, width);
        Buffer<F> buffer(layer_.B * cpu::padded(width));
        buffer.zero();
        return buffer;
    }

    void begin_piece(int64_t d, int64_t t0, int64_t t1) {
        BackwardDirection<F, S>& to = dir_[d];
        t0_[d] = t0;
        t1_[d] = t1;
        row_[d] = layer_.seq.row(t0);
        rows_[d] = layer_.rows_between(t0, t1);
        grow(to.dgx, rows_[d] * to.args.ld_dg);
        if (is_gru(layer_.cell)) grow(to.dgh, rows_[d] * to.args.ld_dg);
        if (layer_.projected) grow(to.dr, rows_[d] * to.args.ld_dr);
        to.args.dgx = to.dgx.data();
        to.args.dgh = is_gru(layer_.cell) ? to.dgh.data() : to.dgx.data();
        to.args.dr = to.dr.data();
        to.args.dg_row = row_[d];
        to.h_before.begin_piece();
        to.c_before.begin_piece();
        // The products of x lie where the loop then writes the gradients of them.
        if (to.rebuild)
            (*to.rebuild)(row_[d], x_.rows(t0, t1), before(d, to.h_before),
                          to.args.w_ch ? before(d, to.c_before) : Matrix<const F>{}, to.args.dgx, to.args.saved);
    }

    static void team_work(void* context, const cpu::Share& share) {
        auto& self = *static_cast<BackwardPass*>(context);
        for (int64_t d = 0; d < self.layer_.D; ++d)
            if (share.direction < 0 || share.direction == d)
                self.loop_(self.dir_[d].args, self.t0_[d], self.t1_[d], share.slice);
    }

    // Few steps: products straight from the weights as they lie.
    void direct_loop(int64_t d) {
        const Layer& l = layer_;
        BackwardDirection<F, S>& to = dir_[d];
        const cpu::BackwardArgs<F, S>& a = to.args;
        for (int64_t step = t0_[d]; step < t1_[d]; ++step) {
            const int64_t t = a.reverse ? step : t0_[d] + t1_[d] - 1 - step;
            const int64_t rows = l.seq.rows(t), first = l.seq.row(t) - row_[d];
            const F* dh = a.dh;
            int64_t ld_dh = a.ld_dh;
            if (l.projected) {
                if (!products_) products_ = Buffer<F>(l.B * l.H);
                k_.output_gradient_rows(a, t, 0, rows, 0, l.R);
                to.w_hr.sum(a.dr + first * a.ld_dr, a.ld_dr, rows, products_.data(), l.H, false);
                dh = products_.data();
                ld_dh = l.H;
            }
            pool_.split(rows, rows * l.H >> 13, [&](int64_t b0, int64_t b1) {
                k_.backward_rows(a, t, b0, b1, 0, l.H, dh + b0 * ld_dh, ld_dh, !l.projected && a.dy);
            });
            // What leaves the first step is dh0; at T = 1 it is a third of the work.
            if (t == (a.reverse ? l.T - 1 : 0) && !(needs_ & kDh0)) continue;
            to.w_hh.sum(a.dgh + first * a.ld_dg, a.ld_dg, rows, a.dh, a.ld_dh, is_gru(l.cell));
        }
    }

    void input_gradient(int64_t d, bool accumulate) {
        if (!dx_) return;
        BackwardDirection<F, S>& to = dir_[d];
        F* dx = dx_.data() + row_[d] * layer_.I;
        if (tiles_) return to.tile_ih(to.dgx.data(), to.args.ld_dg, rows_[d], dx, layer_.I, accumulate);
        to.w_ih.sum(to.dgx.data(), to.args.ld_dg, rows_[d], dx, layer_.I, accumulate);
    }

    // result (+)= dg^T rows, for rows of `columns`
    void weight_gradient(Result<F, S>& result, const Buffer<F>& dg, int64_t ld, int64_t outputs, int64_t count,
                         Matrix<const F> rows, bool accumulate) {
        if (!result) return;
        F* to = result.data();
        const int64_t columns = rows.columns;
        if (count <= kFewRows) {
            pool_.split(outputs, outputs * columns < (1 << 16) ? 1 : 1 << 10, [&](int64_t n0, int64_t n1) {
                k_.outer_rows(dg.data() + n0, ld, count, rows.data, rows.row, n1 - n0, columns, to + n0 * columns,
                              columns, accumulate);
            });
            return;
        }
        if (tiles_) {
            if (transposed_ != dg.data()) gradient_.set(dg.data(), ld, count, outputs);
            transposed_ = dg.data();
            return gradient_.add(rows.data, rows.row, columns, to, accumulate);
        }
        const Matrix<const F> left{dg.data(), count, outputs, ld, 1};
        multiply<F>({to, outputs, columns, columns, 1}, left.transposed(), rows, accumulate);
    }

    void weight_gradients(int64_t d) {
        const Layer& l = layer_;
        BackwardDirection<F, S>& to = dir_[d];
        Result<F, S>* result = dweights_ + d * l.per_direction;
        const int64_t GH = l.G * l.H, rows = rows_[d];
        const Buffer<F>& hidden = is_gru(l.cell) ? to.dgh : to.dgx;
        const bool more = to.weights_begun;
        transposed_ = nullptr;
        to.weights_begun = true;
        if (result[0]) weight_gradient(result[0], to.dgx, GH, GH, rows, x_.rows(t0_[d], t1_[d]), more);
        if (result[1]) weight_gradient(result[1], hidden, GH, GH, rows, before(d, to.h_before), more);
        if (l.biased) {
            bias_gradient(pool_, k_, gates(to.dgx, rows), result[2], more);
            bias_gradient(pool_, k_, gates(hidden, rows), result[3], more);
        }
        if (l.variant.peephole && result[l.at_w_ch]) peephole_gradient(d, result[l.at_w_ch], more);
        if (l.projected && result[l.at_w_hr]) {
            grow(to.unprojected, rows * l.H);
            pool_.split(rows, rows * l.H >> 13, [&](int64_t n0, int64_t n1) {
                k_.unprojected_rows(to.args, row_[d] + n0, row_[d] + n1, to.unprojected.data() + n0 * l.H);
            });
            weight_gradient(result[l.at_w_hr], to.dr, l.R, l.R, rows, {to.unprojected.data(), rows, l.H, l.H, 1}, more);
        }
    }

    void peephole_gradient(int64_t d, Result<F, S>& result, bool accumulate) {
        BackwardDirection<F, S>& to = dir_[d];
        const int64_t H = layer_.H, rows = rows_[d];
        const Saved<const S>& saved = to.args.saved;
        grow(to.cells, rows * H);
        k_.copy_in(saved.state_of(row_[d]), saved.ld_states, rows, H, to.cells.data(), H);
        fused_rnn::peephole_gradient(pool_, k_, gates(to.dgx, rows), before(d, to.c_before),
                                     {to.cells.data(), rows, H, H, 1}, result, accumulate);
    }

    Matrix<const F> gates(const Buffer<F>& dg, int64_t rows) const {
        const int64_t GH = layer_.G * layer_.H;
        return {dg.data(), rows, GH, GH, 1};
    }

    // For every row of the piece.
    Matrix<const F> before(int64_t d, StateBefore<F, S>& state) {
        return state.rows(pool_, k_, layer_, dir_[d].args, t0_[d], t1_[d]);
    }

    Tensor state_gradient(bool needed, int64_t width, Buffer<F> BackwardDirection<F, S>::* carried) {
        if (!needed) return empty({0}, layer_.type);
        const Tensor out = empty({layer_.D, layer_.B, width}, layer_.type);
        for (int64_t d = 0; d < layer_.D; ++d)
            k_.copy_out((dir_[d].*carried).data(), cpu::padded(width), layer_.B, width,
                        mutable_data_of<S>(out) + d * layer_.B * width, width);
        return out;
    }

    const Layer& layer_;
    const cpu::Pool pool_;
    const cpu::Kernels<F, S>& k_;
    InputRows<F, S> x_;
    const int64_t needs_;
    const bool gates_only_;
    bool direct_;
    const cpu::TileKernels<F, S>*tiles_, *loop_tiles_;
    decltype(cpu::Kernels<F, S>::backward_loop) loop_;
    TileGradient<F, S> gradient_;
    const F* transposed_ = nullptr;  // what gradient_ holds
    const Tensor saved_;
    std::optional<Tensor> y_, dy_;
    BackwardDirection<F, S> dir_[kMaxDirections];
    int64_t t0_[kMaxDirections] = {}, t1_[kMaxDirections] = {};     // steps of the piece at hand
    int64_t row_[kMaxDirections] = {}, rows_[kMaxDirections] = {};  // its first row and number of rows
    Result<F, S> dx_;
    Result<F, S> dweights_[kMaxDirections * kMaxWeights];
    Buffer<F> products_;
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward(
    OptionalTensor dy, OptionalTensor dhn, OptionalTensor dcn, Tensor x, Tensor h0, OptionalTensor c0,
    std::vector<Tensor> weights, Tensor y, Tensor saved, OptionalTensor batch_sizes, int64_t cell, int64_t needs,
    bool split_f32, OptionalTensor reset, bool reset_initial, OptionalNumbers variant) {
    const LayerArgs in{x, h0, c0, weights, batch_sizes, cell, reset, reset_initial, variant};
    const Layer l("layer_backward", in);
    const Gradients grads{dy, dhn, dcn, y, saved};
    check_gradients("layer_backward", l, grads);
    if (!is_lstm(cell)) needs &= ~int64_t(kDc0);
    return cpu_by_dtype("layer_backward", l.type, [&]<class F, class S>() {
        BackwardPass<F, S> pass(l, in, grads, needs, false, split_f32);
        if (l.N > 0) {
            pass.run();
        } else {
            pass.zero();
        }
        return std::tuple(pass.dx(), pass.dh0(), pass.dc0(), pass.dweights());
    });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer_backward_gates(
    OptionalTensor dy, OptionalTensor dhn, OptionalTensor dcn, Tensor x, Tensor h0, OptionalTensor c0,
    std::vector<Tensor> weights, Tensor y, Tensor saved, OptionalTensor batch_sizes, int64_t cell, bool split_f32,
    OptionalTensor reset, bool reset_initial, OptionalNumbers variant) {
    const LayerArgs in{x, h0, c0, weights, batch_sizes, cell, reset, reset_initial, variant};
    const Layer l("layer_backward_gates", in);
    const Gradients grads{dy, dhn, dcn, y, saved};
    check_gradients("layer_backward_gates", l, grads);
    const int64_t needs = kDh0 | (is_lstm(cell) ? int64_t(kDc0) : 0);
    return cpu_by_dtype("layer_backward_gates", l.type, [&]<class F, class S>() {
        using Direction = BackwardDirection<F, S>;
        BackwardPass<F, S> pass(l, in, grads, needs, true, split_f32);
        if (l.N > 0) pass.run();
        const int64_t GH = l.G * l.H;
        const Tensor none = empty({0}, l.type);
        return std::tuple(pass.dh0(), pass.dc0(), pass.all_rows(&Direction::dgx, GH, 0, GH),
                          is_gru(cell) ? pass.all_rows(&Direction::dgh, GH, 2 * l.H, l.H) : empty({0}, l.type),
                          l.projected ? pass.all_rows(&Direction::dr, l.R, 0, l.R) : none);
    });
}

}  // namespace fused_rnn
