// The backward pass of a layer. Time is cut into pieces; for each, last first, the time loop gives the gradients of the
// gate pre-activations (dg), and what is not sequential follows as products over the piece:
//   dx = dg W_ih,  dW_ih = dg^T x,  dW_hh = dg^T h_before,  db = sum of dg,  dW_hr = dr^T (o tanh c)
// Where the forward kept states only, a piece begins with its gates (cpu_rebuild.h).
//
// One region of threads does all of it: a crew that meets between a piece's loop and its products, so that dg never leaves
// the cores' caches. Products through BLAS, which has threads of its own, stand between regions instead.
#pragma once
#include <array>

#include "../cpu/subnormal.h"
#include "cpu_backward_plan.h"
#include "cpu_norm.h"
#include "cpu_squares.h"

namespace fused_rnn {

template <class F, class S>
class BackwardPass {
  public:
    // `gates_only`: keep dg of the whole sequence, skip what would follow from it. `tells`: squares() is asked for.
    BackwardPass(const Layer& layer, const LayerArgs& in, const Gradients& grads, int64_t needs, bool gates_only,
                 bool split_f32, bool tells = false)
        : layer_(layer),
          pool_(torch_pool()),
          k_(cpu::kernels<F, S>()),
          x_(k_, layer),
          plan_(layer, needs, gates_only, split_f32, tells),
          loop_(plan_.loop_tiles ? plan_.loop_tiles->backward_loop : k_.backward_loop),
          saved_(laid_out(grads.saved)),
          y_(laid_out(grads.y)) {
        if (grads.dy) dy_ = laid_out(*grads.dy);
        if (grads.dcells) dcells_ = laid_out(*grads.dcells);
        if (tells) squares_.emplace(layer, cpu::kMaxVectors * k_.W);
        for (int64_t d = 0; d < layer.D; ++d) {
            dir_[d].prepare(plan_, pool_, k_, layer, d, in, grads, dy_, dcells_, y_, saved_);
            if (tells) dir_[d].args.squares = squares_->sums(d);
        }
        if (!gates_only || dir_[0].rebuild) x_.reserve(plan_.most_rows);
        if (gates_only) return;
        outer_ = OuterProduct<F, S>(plan_.by, k_, plan_.tiles, plan_.most_rows, std::max(layer.G * layer.H, layer.R),
                                    std::max({layer.I, layer.R, layer.two_products ? layer.H : 0}));
        if (needs & kDx) dx_ = Result<F, S>(layer.x.sizes(), plan_.tiles && layer.D == 1);
        const bool at_once = plan_.pieces() == 1 && (plan_.tiles || layer.N <= kFewRows);  // nothing adds to a product
        for (int64_t k = 0; k < layer.D * layer.per_direction; ++k) {
            if (!(needs >> (kFirstWeight + k) & 1)) continue;
            const Tensor& w = in.weights[k];
            dweights_[k] = Result<F, S>(w.sizes(), at_once && w.dim() > 1);
        }
    }

    void run() {
        if (plan_.direct || plan_.by == By::kBlas || plan_.gates_only) {
            std::optional<cpu::NoSubnormalsOnPool> blas;
            if (layer_.T >= kStepsToVanish && !plan_.gates_only) blas.emplace(blas_pool());
            const cpu::Crew crew(pool_);
            for (int64_t k = 0; k < plan_.pieces(); ++k) {
                Work work = begin(k, crew);
                if (plan_.direct) {
                    for (int64_t d = 0; d < layer_.D; ++d) direct_loop(work[d]);
                } else {
                    Step step{this, &work};
                    cpu::run_loop(pool_, size(work[0].t1 - work[0].t0, 0), loop_only, &step);
                }
                if (!plan_.gates_only) finish(k, work, crew);
            }
        } else {
            cpu::run_loop(pool_, size(layer_.T, flops_around()), whole_pass, this);
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
    Tensor dh0() { return state_gradient(plan_.needs & kDh0, layer_.R, &BackwardDirection<F, S>::dh); }
    Tensor dc0() { return state_gradient(plan_.needs & kDc0, layer_.H, &BackwardDirection<F, S>::dc); }
    std::vector<Tensor> dweights() {
        std::vector<Tensor> out;
        for (int64_t k = 0; k < layer_.D * layer_.per_direction; ++k) {
            const int64_t of = k % layer_.per_direction;
            if (of == 3 && one_bias_gradient(dweights_ + k - of)) dweights_[k].copy(dweights_[k - 1]);
            out.push_back(dweights_[k].finish(pool_, k_));
        }
        return out;
    }

    // [kSquareCount, D, N]
    Tensor squares() {
        for (int64_t d = 0; d < layer_.D; ++d)
            pool_.split(layer_.T, layer_.N >> 10,
                        [&](int64_t t0, int64_t t1) { squares_->finish(dir_[d].args, t0, t1); });
        return squares_->told();
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
    // A piece of time of one direction, as one thread goes through it.
    struct Piece {
        int64_t t0, t1, row, rows;
        cpu::BackwardArgs<F, S> args;
        std::optional<Matrix<const F>> h_before, c_before;  // once they were asked for
    };
    using Work = std::array<Piece, kMaxDirections>;
    struct Step {
        BackwardPass* self;
        Work* work;
    };

    cpu::LoopSize size(int64_t steps, int64_t flops_around) const {
        cpu::LoopSize size =
            loop_size<S>(layer_, dir_[0].packed_hh, dir_[0].packed_hr, steps, plan_.loop_tiles != nullptr);
        size.exchanged = layer_.G * layer_.H * static_cast<int64_t>(sizeof(F));
        size.flops_around = flops_around;
        return size;
    }
    // Of dx and the weight gradients; 1 where there are none, as the crew meets in any case.
    int64_t flops_around() const {
        int64_t columns = dx_ ? layer_.I : 0;
        if (dweights_[0]) columns += layer_.I;
        if (dweights_[1]) columns += layer_.R;
        return std::max<int64_t>(
            1, 2 * layer_.D * layer_.N * layer_.G * layer_.H * columns / (plan_.tiles ? kTileSpeed<S> : 1));
    }

    // Every thread of a crew, from the first piece to the last.
    static void whole_pass(void* context, const cpu::Share& share) {
        auto& self = *static_cast<BackwardPass*>(context);
        for (int64_t k = 0; k < self.plan_.pieces(); ++k) {
            Work work = self.begin(k, share.crew);
            self.loop(work, share);
            share.crew.wait();
            self.finish(k, work, share.crew);
        }
    }
    static void loop_only(void* context, const cpu::Share& share) {
        const Step& step = *static_cast<const Step*>(context);
        step.self->loop(*step.work, share);
    }
    void loop(const Work& work, const cpu::Share& share) const {
        for (int64_t d = 0; d < layer_.D; ++d)
            if (share.direction < 0 || share.direction == d) loop_(work[d].args, work[d].t0, work[d].t1, share.slice);
    }

    // The k-th piece that each direction walks; the other direction walks them the other way.
    int64_t index(int64_t d, int64_t k) const { return d == 0 ? plan_.pieces() - 1 - k : k; }

    Work begin(int64_t k, const cpu::Crew& crew) {
        Work work;
        for (int64_t d = 0; d < layer_.D; ++d) {
            BackwardDirection<F, S>& of = dir_[d];
            Piece& piece = work[d];
            piece.t0 = plan_.bounds[index(d, k)];
            piece.t1 = plan_.bounds[index(d, k) + 1];
            piece.row = layer_.seq.row(piece.t0);
            piece.rows = layer_.rows_between(piece.t0, piece.t1);
            piece.args = of.args;
            piece.args.dg_row = piece.row;
            if (!of.rebuild) continue;
            // The products of x lie where the loop then writes the gradients of them.
            const Matrix<const F> x = x_.rows(crew, piece.t0, piece.t1), h = h_before(d, piece, crew);
            const Matrix<const F> c = layer_.variant.peephole ? c_before(d, piece, crew) : Matrix<const F>{};
            (*of.rebuild)(crew, piece.row, x, h, c, of.dgx.data(), piece.args.saved);
        }
        return work;
    }

    // Few steps: products straight from the weights as they lie.
    void direct_loop(const Piece& piece) {
        const Layer& l = layer_;
        const cpu::BackwardArgs<F, S>& a = piece.args;
        BackwardDirection<F, S>& of = dir_[a.reverse ? 1 : 0];
        for (int64_t step = piece.t0; step < piece.t1; ++step) {
            const int64_t t = a.reverse ? step : piece.t0 + piece.t1 - 1 - step;
            const int64_t rows = l.seq.rows(t), first = l.seq.row(t) - piece.row;
            const F* dh = a.dh;
            int64_t ld_dh = a.ld_dh;
            if (l.two_products) {
                if (!products_) products_ = Buffer<F>(l.B * std::max(l.R, l.H));
                k_.output_gradient_rows(a, t, 0, rows, 0, l.R);
                of.w_hr.sum(a.dr + first * a.ld_dr, a.ld_dr, rows, products_.data(), l.H, false);
                dh = products_.data();
                ld_dh = l.H;
            }
            pool_.split(rows, rows * l.H >> 13, [&](int64_t b0, int64_t b1) {
                k_.backward_rows(a, t, b0, b1, 0, l.H, dh + b0 * ld_dh, ld_dh, !l.two_products && a.dy);
            });
            if (a.sends(t)) send_back(of, a, a.dgh + first * a.ld_dg, rows);
            if (!l.variant.clips()) continue;
            pool_.split(rows, rows * l.H >> 13, [&](int64_t b0, int64_t b1) { k_.clip_rows(a, t, b0, b1); });
        }
    }

    // dh of the step before, by way of W_hh.
    void send_back(BackwardDirection<F, S>& of, const cpu::BackwardArgs<F, S>& a, const F* dg, int64_t rows) {
        const int64_t R = layer_.R;
        if (!a.mask) return of.w_hh.sum(dg, a.ld_dg, rows, a.dh, a.ld_dh, a.passes_h());
        if (!products_) products_ = Buffer<F>(layer_.B * std::max(R, layer_.H));
        of.w_hh.sum(dg, a.ld_dg, rows, products_.data(), R, false);
        k_.mask_rows(products_.data(), R, a.mask, a.ld_dh, rows, R, a.dh, a.ld_dh, a.passes_h());
    }

    // What follows from dg of a piece.
    void finish(int64_t k, Work& work, const cpu::Crew& crew) {
        for (int64_t d = 0; d < layer_.D; ++d) {
            Piece& piece = work[d];
            take_gradients(dir_[d], piece, crew);
            // The first direction to come by a piece sets dx, the other one adds; where both come at once, it is the second.
            const int64_t met = plan_.pieces() - 1 - k;
            const bool adds = layer_.D > 1 && (d == 0 ? k > met : k >= met);
            if (dx_)
                dir_[d].w_ih(crew, gates(piece, piece.args.dgx), dir_[d].dgx_left, dx_.target() + piece.row * layer_.I,
                             layer_.I, adds);
            weight_gradients(d, piece, k > 0, crew);
            crew.wait();  // for dx of the other direction, and until dg may be overwritten
        }
    }

    Matrix<const F> gates(const Piece& piece, const F* dg) const {
        return {dg, piece.rows, layer_.G * layer_.H, piece.args.ld_dg, 1};
    }
    Matrix<const F> second_gradients(const Piece& piece) const {
        return {piece.args.dr, piece.rows, layer_.projected ? layer_.R : layer_.H, piece.args.ld_dr, 1};
    }

    // As left factors, those that the loop has not left so.
    void take_gradients(const BackwardDirection<F, S>& of, const Piece& piece, const cpu::Crew& crew) const {
        const bf16* left = piece.args.narrowed;
        if (of.dgx_left.data() != left) of.dgx_left.take(crew, gates(piece, piece.args.dgx));
        if (of.dgh_left.data() != left) of.dgh_left.take(crew, gates(piece, piece.args.dgh));
        of.dr_left.take(crew, second_gradients(piece));
    }

    void weight_gradients(int64_t d, Piece& piece, bool more, const cpu::Crew& crew) {
        const Layer& l = layer_;
        const cpu::BackwardArgs<F, S>& a = piece.args;
        const bool apart = hidden_apart(l.cell, l.variant), before = l.variant.reset_before;
        Result<F, S>* result = dweights_ + d * l.per_direction;
        const Matrix<const F> dgx = gates(piece, a.dgx), dgh = gates(piece, a.dgh), dr = second_gradients(piece);
        const BackwardDirection<F, S>& of = dir_[d];
        const RowRange all{0, piece.rows};
        const auto recurrent = [&](Matrix<const F> dg) {
            return recurrent_rows(crew, k_, a, piece.t0, piece.t1, dg, of.first_sums.data(), outer_.depth());
        };
        const bool biased = l.biased && !l.variant.layer_norm;
        F* b_ih = biased && result[2] ? result[2].data() : nullptr;  // those still to be summed
        F* b_hh = biased && result[3] && !one_bias_gradient(result) ? result[3].data() : nullptr;
        if (result[0] || (result[1] && !apart && !before)) b_ih = outer_.prepare(crew, dgx, of.dgx_left, b_ih, more);
        if (result[0]) {
            const auto stored = x_.stored(piece.t0, piece.t1);
            if (stored && outer_.takes_stored(piece.rows)) {
                outer_.add_stored(crew, dgx, *stored, result[0].target(), more);
            } else {
                outer_.add(crew, dgx, x_.rows(crew, piece.t0, piece.t1), all, result[0].target(), more);
            }
        }
        if (result[1] && before) {  // that of r and z, and of n with r h
            const Matrix<const F> of_r_and_z{a.dgx, piece.rows, 2 * l.H, a.ld_dg, 1};
            outer_.prepare(crew, of_r_and_z, of.dgx_left);
            outer_.add(crew, of_r_and_z, h_before(d, piece, crew), recurrent(of_r_and_z), result[1].target(), more);
            outer_.prepare(crew, dr, of.dr_left);
            outer_.add(crew, dr, {a.rh, piece.rows, l.H, l.H, 1}, all, result[1].target() + 2 * l.H * l.H, more);
        } else if (result[1]) {
            if (apart) b_hh = outer_.prepare(crew, dgh, of.dgh_left, b_hh, more);
            outer_.add(crew, dgh, h_before(d, piece, crew), recurrent(dgh), result[1].target(), more);
        }
        if (l.variant.layer_norm) norm_gradients(crew, k_, l, a, result, more);
        if (b_ih) column_sums(crew, k_, dgx, b_ih, more);
        if (b_hh) column_sums(crew, k_, dgh, b_hh, more);
        const bool of_w_ch = l.variant.peephole && !l.variant.layer_norm && result[l.at_w_ch];
        const bool of_w_hr = l.projected && result[l.at_w_hr];
        const F* const cells = of_w_ch || (of_w_hr && needs_candidates(l)) ? shown_cells(d, piece, crew) : nullptr;
        if (of_w_ch)
            peephole_gradient(crew, k_, dgx, c_before(d, piece, crew), {cells, piece.rows, l.H, l.H, 1},
                              result[l.at_w_ch], more);
        if (of_w_hr) {
            F* const shown = dir_[d].multiplied.data();
            crew.split(piece.rows, piece.rows * l.H >> 13, [&](int64_t n0, int64_t n1) {
                k_.unprojected_rows(a, piece.row + n0, piece.row + n1, cells ? cells + n0 * l.H : nullptr,
                                    shown + n0 * l.H);
            });
            outer_.prepare(crew, dr, of.dr_left);
            outer_.add(crew, dr, {shown, piece.rows, l.H, l.H, 1}, all, result[l.at_w_hr].target(), more);
        }
    }

    // c of every row of the piece as the output gate saw it, [rows, H].
    const F* shown_cells(int64_t d, Piece& piece, const cpu::Crew& crew) {
        const Layer& l = layer_;
        const cpu::BackwardArgs<F, S>& a = piece.args;
        const Matrix<const F> c = needs_candidates(l) ? c_before(d, piece, crew) : Matrix<const F>{};
        F* const cells = dir_[d].cells.data();
        crew.split(piece.rows, piece.rows * l.H >> 14, [&](int64_t n0, int64_t n1) {
            const int64_t first = piece.row + n0, end = piece.row + n1;
            if (c.data) {
                k_.candidate_rows(a, first, end, c.data + n0 * c.row, c.row, cells + n0 * l.H);
            } else {
                k_.copy_in(a.saved.state_of(first), a.saved.ld_states, n1 - n0, l.H, cells + n0 * l.H, l.H);
            }
        });
        return cells;
    }

    // Whether those of b_ih and b_hh are asked for and are the same; `result`: a direction's.
    bool one_bias_gradient(const Result<F, S>* result) const {
        return layer_.biased && !biases_apart(layer_.cell, layer_.variant) && result[2] && result[3];
    }

    // h and c of the step before (in walking order), for every row of the piece; gathered once.
    Matrix<const F> h_before(int64_t d, Piece& piece, const cpu::Crew& crew) const {
        return before(piece.h_before, dir_[d].h_before, piece, crew);
    }
    Matrix<const F> c_before(int64_t d, Piece& piece, const cpu::Crew& crew) const {
        return before(piece.c_before, dir_[d].c_before, piece, crew);
    }
    Matrix<const F> before(std::optional<Matrix<const F>>& known, const StateBefore<F, S>& state, const Piece& piece,
                           const cpu::Crew& crew) const {
        if (!known) known = state.rows(crew, k_, layer_, piece.args, piece.t0, piece.t1);
        return *known;
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
    const BackwardPlan<F, S> plan_;
    const decltype(cpu::Kernels<F, S>::backward_loop) loop_;
    OuterProduct<F, S> outer_;
    const Tensor saved_, y_;
    std::optional<Tensor> dy_, dcells_;
    std::optional<Squares> squares_;
    BackwardDirection<F, S> dir_[kMaxDirections];
    Result<F, S> dx_;
    Result<F, S> dweights_[kMaxDirections * kMaxWeights];
    Buffer<F> products_;
};

}  // namespace fused_rnn
