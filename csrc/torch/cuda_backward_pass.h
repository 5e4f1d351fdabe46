// The backward ops on an accelerator: the time loop of all directions gives dg, the gradients of the gate pre-activations,
// of the whole sequence; what is not sequential follows as products:
//   dx = dg W_ih,  dW_ih = dg^T x,  dW_hh = dg^T h_before,  db = sum of dg,  dW_hr = dr^T (o tanh c)
// Where the forward kept states only, the gates of the whole sequence come first, by two products a direction.
#pragma once
#include "cuda_norm.h"
#include "cuda_squares.h"

namespace fused_rnn::cuda {

template <class S>
class BackwardCall {
    using F = ComputeType<S>;

  public:
    // `squares`: null where none are asked for.
    BackwardCall(const LayerCall<S>& call, const LayerArgs& in, const Gradients& grads, int64_t needs,
                 Squares<S>* squares = nullptr)
        : call_(call),
          l(call.l),
          in_(in),
          needs_(needs),
          h0_(laid_out(in.h0)),
          saved_(laid_out(grads.saved)),
          y_(laid_out(grads.y)),
          mask_(call.recurrent_mask()),
          norm_(call) {
        if (is_lstm(l.cell)) c0_ = laid_out(*in.c0);
        for (int64_t d = 0; d < l.D; ++d) {
            dg_.push_back(call.empty({l.N, width()}));
            if (l.projected) dr_.push_back(call.empty({l.N, l.R}));
            if (!l.variant.layer_norm) continue;
            dproduct_.push_back(call.empty({l.N, l.G * l.H}));
            if (is_lstm(l.cell)) dnorm_.push_back(call.empty_wide({l.N, 2 * l.H}));
        }
        dh0_ = needs & kDh0 ? call.empty({l.D, l.B, l.R}) : call.nothing();
        dc0_ = is_lstm(l.cell) ? call.empty({l.D, l.B, l.H}) : call.nothing();
        for (int64_t d = 0; d < l.D; ++d) read_saved(d);
        if (l.N == 0) return;
        run_loop(grads, squares);
        for (int64_t d = 0; l.variant.layer_norm && d < l.D; ++d)
            of_x_.push_back(norm_.product_gradient(d, dg_[d], kept_[d]));
    }

    Tensor dh0() const { return *dh0_; }
    Tensor dc0() const { return needs_ & kDc0 ? *dc0_ : call_.nothing(); }

    Tensor dx() const {
        if (!(needs_ & kDx)) return call_.nothing();
        const Tensor dx = l.packed ? call_.empty({l.N, l.I}) : call_.empty({l.T, l.B, l.I});
        const Tensor rows = matrix(mutable_data_of<S>(dx), l.N, l.I, l.I).tensor(call_.place);
        for (int64_t d = 0; d < l.D && l.N > 0; ++d) {
            const Tensor w_ih = laid_out(*l.weights[d].w_ih);
            const Tensor w = matrix(data_of<S>(w_ih), l.G * l.H, l.I, l.I).tensor(call_.place);
            (d == 0 ? multiply : add_multiply)(rows, of_x(d).tensor(call_.place), w);
        }
        return dx;
    }

    std::vector<Tensor> dweights() const {
        std::vector<Tensor> out;
        for (int64_t d = 0; d < l.D; ++d) {
            out.push_back(wants(d, 0) ? weight_gradient(of_x(d), l.I, call_.x_rows()) : call_.nothing());
            out.push_back(wants(d, 1) ? recurrent_gradient(d) : call_.nothing());
            if (l.biased) {
                const Tensor sums = wants(d, 2) || wants(d, 3) ? column_sums(dg_[d], l.type) : call_.nothing();
                out.push_back(wants(d, 2) ? bias_gradient(sums, false) : call_.nothing());
                out.push_back(wants(d, 3) ? bias_gradient(sums, true) : call_.nothing());
            }
            if (l.projected) out.push_back(wants(d, l.at_w_hr) ? projection_gradient(d) : call_.nothing());
            if (l.variant.peephole) out.push_back(wants(d, l.at_w_ch) ? peephole_gradient(d) : call_.nothing());
            if (l.variant.layer_norm) norm_gradients(d, out);
        }
        return out;
    }

    // Columns of every direction's gates, side by side: [N, D*count].
    Tensor all_gates(int64_t from, int64_t count) const {
        return side_by_side(count, [&](int64_t d) { return gates(d, from, count); });
    }
    Tensor all_dr() const {
        return side_by_side(l.R, [&](int64_t d) { return matrix(data_of<S>(dr_[d]), l.N, l.R, l.R); });
    }

  private:
    static Matrix<const S> matrix(const S* data, int64_t rows, int64_t columns, int64_t row) {
        return {data, rows, columns, row, 1};
    }
    Tensor matrix_of(const Tensor& rows, int64_t columns) const {
        return matrix(data_of<S>(rows), l.N, columns, columns).tensor(call_.place);
    }
    int64_t width() const { return gradient_blocks(l.cell, l.variant) * l.H; }
    bool wants(int64_t d, int64_t k) const { return needs_ >> (kFirstWeight + d * l.per_direction + k) & 1; }
    Matrix<const S> gates(int64_t d, int64_t from, int64_t count) const {
        return matrix(data_of<S>(dg_[d]) + from, l.N, count, width());
    }
    // Gradients of the product with x.
    Matrix<const S> of_x(int64_t d) const {
        const int64_t GH = l.G * l.H;
        return of_x_.empty() ? gates(d, 0, GH) : matrix(data_of<S>(of_x_[d]), l.N, GH, GH);
    }
    // Whether loops look at whole rows.
    bool rowwise() const { return l.variant.layer_norm || l.variant.clips(); }

    // What a kernel over all rows is told of the cell.
    template <class Args>
    Args row_args() const {
        Args a{};
        call_.fill(a, mask_);
        a.N = l.N;
        a.H = l.H;
        return a;
    }

    // Where the loop finds the gates and states of direction d.
    void read_saved(int64_t d) {
        Saved<const S>& at = kept_[d] = kept_direction<S>(l, saved_, y_, d);
        const int64_t gates = saved_gates_of(l.cell, l.variant);
        if (l.N == 0 || at.gates || !gates) return;
        const DirectionWeights& w = l.weights[d];
        const auto products = [&](const Tensor& rows, const Tensor& weight, int64_t columns) {
            const int64_t count = weight.size(0);
            const Tensor out = call_.empty_wide({l.N, count}), right = laid_out(weight);
            multiply(out, rows, matrix(data_of<S>(right), count, columns, columns).transposed().tensor(call_.place));
            return out;
        };
        const Tensor gx = products(call_.x_rows(), *w.w_ih, l.I), before = rows_before(d);
        const Tensor hidden = products(matrix_of(before, l.R), *w.w_hh, l.R);
        std::optional<Tensor> b_ih, b_hh, w_ch, c_before;
        auto a = row_args<RebuildArgs<S>>();
        rebuilt_.push_back(call_.empty({l.N, gates * l.H}));
        at.ld_gates = gates * l.H;
        at.gates = a.gates = mutable_data_of<S>(rebuilt_.back());
        if (l.variant.layer_norm) {
            const Saved<S> to{a.gates, 0, at.ld_gates, nullptr, 0};
            norm_.normalise(d, false, gx, to);
            norm_.normalise(d, true, hidden, to);
        }
        a.cell = l.cell;
        a.d = d;
        a.gx = data_of<F>(gx);
        a.hidden = data_of<F>(hidden);
        if (w.b_ih) {
            a.b_ih = data_of<S>(b_ih.emplace(laid_out(*w.b_ih)));
            a.b_hh = data_of<S>(b_hh.emplace(laid_out(*w.b_hh)));
        }
        if (w.w_ch) {
            a.w_ch[d] = data_of<S>(w_ch.emplace(laid_out(*w.w_ch)));
            a.c_before = data_of<S>(c_before.emplace(cells_before(d)));
        }
        over_rows(a, call_.device.stream());
        if (!l.variant.reset_before) return;
        const Tensor of_rh = products(matrix_of(reset_rows(d, before), l.H), *w.w_hr, l.H);
        a.of_rh = data_of<F>(of_rh);
        over_rows(a, call_.device.stream());
    }

    void run_loop(const Gradients& grads, Squares<S>* squares) {
        RowwiseBackwardArgs<S> a{};
        std::vector<Tensor> kept;
        kept.reserve(24);
        const auto keep = [&](const Tensor& t) { return data_of<S>(kept.emplace_back(laid_out(t))); };
        const auto keep_transposed = [&](const Tensor& w) { return keep(torch::stable::transpose(w, 0, 1)); };
        call_.describe(a, h0_, mask_);
        a.G = gates_of_h(l.cell, l.variant);
        a.width = width();
        const bool initial = l.begins && l.reset_initial, sums = initial && !rowwise();
        a.needs_dh0 = needs_ & kDh0 && !sums;
        if (grads.dy) a.dy = keep(*grads.dy);
        if (grads.dhn) a.dhn = keep(*grads.dhn);
        if (is_lstm(l.cell)) {
            a.c0 = data_of<S>(*c0_);
            a.dc0 = mutable_data_of<S>(*dc0_);
            if (grads.dcn) a.dcn = keep(*grads.dcn);
            if (grads.dcells) a.dcells = keep(*grads.dcells);
            a.dc = mutable_data_of<F>(kept.emplace_back(call_.empty_wide({l.D, l.B, l.H})));
            if (sums) a.sum_c = zeros(kept.emplace_back(call_.empty_wide({l.D, l.B, l.H})));
        }
        if (is_gru(l.cell) || l.variant.zoneout_h > 0) {
            a.passed = mutable_data_of<F>(kept.emplace_back(call_.empty_wide({l.D, l.B, l.R})));
            if (sums) a.sum_h = zeros(sum_h_.emplace(call_.empty_wide({l.D, l.B, l.R})));
        }
        if (a.needs_dh0) a.dh0 = mutable_data_of<S>(*dh0_);
        a.first_copies16 = in_pieces<S>(l.H);
        a.second_copies16 = in_pieces<S>(l.R);
        for (int64_t d = 0; d < l.D; ++d) {
            const DirectionWeights& w = l.weights[d];
            a.w_hh_t[d] = keep_transposed(*w.w_hh);
            a.dg[d] = mutable_data_of<S>(dg_[d]);
            a.saved[d] = kept_[d];
            a.first_copies16 = a.first_copies16 && in_pieces(a.w_hh_t[d]);
            if (w.w_ch) a.w_ch[d] = keep(*w.w_ch);
            if (!l.two_products) continue;
            a.w_hr_t[d] = keep_transposed(*w.w_hr);
            // d_n of a GRU whose reset gate comes before the product.
            a.dr[d] = l.projected ? mutable_data_of<S>(dr_[d]) : a.dg[d] + 2 * l.H;
            a.ld_dr = l.projected ? l.R : a.width;
            a.second_copies16 = a.second_copies16 && in_pieces(a.w_hr_t[d]) && in_pieces(a.dr[d]);
        }
        if (squares) squares->note(a);
        if (!rowwise()) {
            call_.run_loop(a, true, false, a.varies ? backward<S, true> : backward<S, false>);
        } else {
            a.ld_sums = std::max(l.H, l.R);
            a.sums = mutable_data_of<F>(kept.emplace_back(call_.empty_wide({l.D, l.B, a.ld_sums})));
            if (initial) a.to_h0 = zeros(kept.emplace_back(call_.empty_wide({l.D, l.B, l.R})));
            if (initial && is_lstm(l.cell)) a.to_c0 = zeros(kept.emplace_back(call_.empty_wide({l.D, l.B, l.H})));
            a.norm = norm_.weights();
            for (size_t d = 0; d < dproduct_.size(); ++d) a.dproduct[d] = mutable_data_of<S>(dproduct_[d]);
            for (size_t d = 0; d < dnorm_.size(); ++d) a.dnorm[d] = mutable_data_of<F>(dnorm_[d]);
            call_.run_loop(a, true, true, rowwise_backward<S>);
        }
        if (squares) squares->sum(a);
        if (sums && needs_ & kDh0) sum_dh0();
    }

    static F* zeros(const Tensor& t) {
        TORCH_ERROR_CODE_CHECK(aoti_torch_zero_(t.get()));
        return mutable_data_of<F>(t);
    }

    // Of all episodes that begin from h0.
    void sum_dh0() {
        const int64_t G = gates_of_h(l.cell, l.variant), GH = G * l.H;
        const Tensor sums = call_.empty({l.B, GH});
        for (int64_t d = 0; d < l.D; ++d) {
            over_rows(SumsArgs<S>{call_.sequence(), l.cell, d, l.H, G, width(), data_of<S>(dg_[d]), l.begins, true,
                                  mutable_data_of<S>(sums)},
                      call_.device.stream());
            const Tensor w_hh = laid_out(*l.weights[d].w_hh);
            S* const to = mutable_data_of<S>(*dh0_) + d * l.B * l.R;
            multiply(Matrix<S>{to, l.B, l.R, l.R, 1}.tensor(call_.place),
                     Matrix<const S>{data_of<S>(sums), l.B, GH, GH, 1}.tensor(call_.place),
                     matrix(data_of<S>(w_hh), GH, l.R, l.R).tensor(call_.place));
        }
        if (mask_) dh0_ = call_.masked(*dh0_, *mask_);
        if (sum_h_) torch::stable::copy_(*dh0_, torch::stable::subtract(*dh0_, *sum_h_, -1.0));
    }

    // h of the step before (in walking order), for every row, as W_hh saw it.
    Tensor rows_before(int64_t d) const {
        const F* mask = mask_ ? data_of<F>(*mask_) : nullptr;
        return gather(d, h0_, l.R, data_of<S>(y_) + d * l.R, l.D * l.R, mask);
    }
    Tensor cells_before(int64_t d) const { return gather(d, *c0_, l.H, kept_[d].states, kept_[d].ld_states, nullptr); }
    Tensor gather(int64_t d, const Tensor& first, int64_t size, const S* rows, int64_t ld, const F* mask) const {
        const Tensor to = call_.empty({l.N, size});
        if (l.N == 0) return to;
        over_rows(BeforeArgs<S>{call_.sequence(), d, l.D, size, rows, ld, data_of<S>(first), l.begins, l.reset_initial,
                                mask, mutable_data_of<S>(to)},
                  call_.device.stream());
        return to;
    }

    // r h, of h as rows_before() has it.
    Tensor reset_rows(int64_t d, const Tensor& before) const {
        const Tensor to = call_.empty({l.N, l.H});
        const ResetArgs<S> a{l.N, l.H, kept_[d], data_of<S>(before), mutable_data_of<S>(to)};
        if (l.N > 0) over_rows(a, call_.device.stream());
        return to;
    }

    // out = left^T right over all rows; no rows, no gradient.
    void products_over_rows(const Tensor& out, const Matrix<const S>& left, const Tensor& right) const {
        if (l.N == 0) {
            TORCH_ERROR_CODE_CHECK(aoti_torch_zero_(out.get()));
        } else {
            multiply(out, left.transposed().tensor(call_.place), right);
        }
    }

    // dg^T rows, [G*H, columns].
    Tensor weight_gradient(const Matrix<const S>& dg, int64_t columns, const Tensor& rows) const {
        const Tensor out = call_.empty({l.G * l.H, columns});
        products_over_rows(out, dg, rows);
        return out;
    }
    // Of the hidden side: a GRU's n has a gradient, or rows, of its own.
    Tensor recurrent_gradient(int64_t d) const {
        const Tensor before = rows_before(d), rows = matrix_of(before, l.R);
        if (l.variant.layer_norm)
            return weight_gradient(matrix(data_of<S>(dproduct_[d]), l.N, l.G * l.H, l.G * l.H), l.R, rows);
        if (!is_gru(l.cell)) return weight_gradient(gates(d, 0, l.G * l.H), l.R, rows);
        const Tensor out = call_.empty({3 * l.H, l.R});
        S* to = mutable_data_of<S>(out);
        products_over_rows(matrix(to, 2 * l.H, l.R, l.R).tensor(call_.place), gates(d, 0, 2 * l.H), rows);
        const bool apart = biases_apart(l.cell, l.variant);
        const Tensor of_n = apart ? before : reset_rows(d, before);
        products_over_rows(matrix(to + 2 * l.H * l.R, l.H, l.R, l.R).tensor(call_.place),
                           gates(d, (apart ? 3 : 2) * l.H, l.H), matrix_of(of_n, l.R));
        return out;
    }

    Tensor projection_gradient(int64_t d) const {
        const Tensor out = call_.empty({l.R, l.H}), unprojected = call_.empty({l.N, l.H});
        std::optional<Tensor> c_before;
        if (l.N > 0) {
            auto a = row_args<UnprojectedArgs<S>>();
            a.saved = kept_[d];
            if (l.variant.zoneout_c > 0) a.c_before = data_of<S>(c_before.emplace(cells_before(d)));
            a.gain = norm_.weights().c[d];
            a.shift = norm_.weights().c_shift[d];
            a.to = mutable_data_of<S>(unprojected);
            over_rows(a, call_.device.stream());
        }
        products_over_rows(out, matrix(data_of<S>(dr_[d]), l.N, l.R, l.R), matrix_of(unprojected, l.H));
        return out;
    }

    Tensor peephole_gradient(int64_t d) const {
        const int64_t count = (l.G - 1) * l.H;
        const Tensor before = cells_before(d), products = call_.empty_wide({l.N, count});
        auto a = row_args<PeepholeArgs<S>>();
        a.dg = data_of<S>(dg_[d]);
        a.saved = kept_[d];
        a.c_before = data_of<S>(before);
        a.to = mutable_data_of<F>(products);
        if (l.N > 0) over_rows(a, call_.device.stream());
        return narrowed(column_sums(products, scalar_type<F>()));
    }

    // Of gains and shifts, behind the others of direction d.
    void norm_gradients(int64_t d, std::vector<Tensor>& out) const {
        for (const bool hidden : {false, true}) {
            if (!wants(d, l.at_norm + hidden)) {
                out.push_back(call_.nothing());
            } else {
                const Tensor rows = norm_.gain_rows(d, hidden, dg_[d], kept_[d]);
                out.push_back(narrowed(column_sums(rows, scalar_type<F>())));
            }
        }
        if (!is_lstm(l.cell)) return;
        Tensor sums = column_sums(dnorm_[d], scalar_type<F>());
        for (int64_t k = 0; k < 2; ++k)
            out.push_back(wants(d, l.at_norm + 2 + k) ? narrowed(torch::stable::narrow(sums, 0, k * l.H, l.H))
                                                      : call_.nothing());
    }

    // A vector in the storage type.
    Tensor narrowed(const Tensor& from) const {
        Tensor out = call_.empty({from.size(0)});
        torch::stable::copy_(out, from);
        return out;
    }

    static Tensor column_sums(const Tensor& rows, ScalarType type) {
        const int64_t dims[1] = {0};
        return torch::stable::sum(rows, torch::headeronly::IntHeaderOnlyArrayRef(dims, 1), false, type);
    }
    // `sums`: of dg, in its own order; the same serve both biases.
    Tensor bias_gradient(Tensor sums, bool hidden) const {
        const int64_t GH = l.G * l.H;
        Tensor out = call_.empty({GH});
        if (!hidden || !biases_apart(l.cell, l.variant)) {
            torch::stable::copy_(out, torch::stable::narrow(sums, 0, 0, GH));
        } else {
            Tensor both = torch::stable::narrow(out, 0, 0, 2 * l.H), n = torch::stable::narrow(out, 0, 2 * l.H, l.H);
            torch::stable::copy_(both, torch::stable::narrow(sums, 0, 0, 2 * l.H));
            torch::stable::copy_(n, torch::stable::narrow(sums, 0, 3 * l.H, l.H));
        }
        return out;
    }

    template <class Rows>
    Tensor side_by_side(int64_t count, const Rows& rows) const {
        const Tensor out = call_.empty({l.N, l.D * count});
        for (int64_t d = 0; d < l.D && l.N > 0; ++d) {
            Tensor to = matrix(mutable_data_of<S>(out) + d * count, l.N, count, l.D * count).tensor(call_.place);
            torch::stable::copy_(to, rows(d).tensor(call_.place));
        }
        return out;
    }

    const LayerCall<S>& call_;
    const Layer& l;
    const LayerArgs& in_;
    const int64_t needs_;
    const Tensor h0_, saved_, y_;
    const std::optional<Tensor> mask_;
    const LayerNorm<S> norm_;
    std::optional<Tensor> c0_, dh0_, dc0_, sum_h_;
    // Of each direction; with layer normalisation the gradients of both products too, and of a normalised c.
    std::vector<Tensor> dg_, dr_, of_x_, dproduct_, dnorm_;
    std::vector<Tensor> rebuilt_;
    Saved<const S> kept_[kMaxDirections] = {};
};

}  // namespace fused_rnn::cuda
