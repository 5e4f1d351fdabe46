// The forward op on an accelerator: gx = x W_ih^T of the whole sequence as one product a direction, then the time loop of
// all directions together.
#include "cuda_norm.h"

namespace fused_rnn::cuda {
namespace {

template <class S>
void run_forward(const LayerCall<S>& call, const LayerArgs& in, const LayerOutputs& out) {
    using F = ComputeType<S>;
    const Layer& l = call.l;
    const Tensor h0 = laid_out(in.h0);
    std::optional<Tensor> c0, h_full, z, carry, seen, h0_seen;
    const std::optional<Tensor> mask = call.recurrent_mask();
    std::vector<Tensor> kept;  // until the end of this function: what is freed goes back to the stream's own pool

    const LayerNorm<S> norm(call);
    RowwiseForwardArgs<S> a{};
    call.describe(a, h0, mask);
    const Tensor x = call.x_rows();
    for (int64_t d = 0; d < l.D; ++d) {
        const DirectionWeights& w = l.weights[d];
        const Tensor w_ih = laid_out(*w.w_ih), gx = call.empty_wide({l.N, l.G * l.H});
        multiply(gx, x, Matrix<const S>{data_of<S>(w_ih), l.G * l.H, l.I, l.I, 1}.transposed().tensor(call.place));
        a.saved[d] = saved_direction<S>(l, out.saved, d);
        if (l.variant.layer_norm) norm.normalise(d, false, gx, a.saved[d]);
        a.gx[d] = data_of<F>(gx);
        kept.push_back(gx);
        const auto keep = [&](const Tensor* t) -> const S* {
            return t ? data_of<S>(kept.emplace_back(laid_out(*t))) : nullptr;
        };
        a.w_hh[d] = keep(w.w_hh);
        a.w_hr[d] = keep(w.w_hr);
        a.b_ih[d] = keep(w.b_ih);
        a.b_hh[d] = keep(w.b_hh);
        a.w_ch[d] = keep(w.w_ch);
    }
    if (is_lstm(l.cell)) {
        c0 = laid_out(*in.c0);
        a.c0 = data_of<S>(*c0);
        a.cn = mutable_data_of<S>(out.cn);
    }
    if (is_lstm(l.cell) || is_gru(l.cell)) {
        carry = call.empty_wide({l.D, l.B, l.H});
        a.carry = mutable_data_of<F>(*carry);
    }
    if (l.two_products) {
        h_full = call.empty({l.D, l.B, l.H});
        a.h_full = mutable_data_of<S>(*h_full);
    }
    if (l.variant.reset_before) {
        z = call.empty_wide({l.D, l.B, l.H});
        a.z = mutable_data_of<F>(*z);
    }
    if (mask) {
        seen = call.empty({2, l.D, l.B, l.R});
        h0_seen = call.masked(h0, *mask);
        a.seen = mutable_data_of<S>(*seen);
        a.h0_seen = data_of<S>(*h0_seen);
    }
    a.y = mutable_data_of<S>(out.y);
    a.hn = mutable_data_of<S>(out.hn);

    a.first_copies16 = in_pieces<S>(l.R) && in_pieces(a.h0) && in_pieces(a.y);
    a.second_copies16 = in_pieces<S>(l.H);
    for (int64_t d = 0; d < l.D; ++d) {
        a.first_copies16 = a.first_copies16 && in_pieces(a.w_hh[d]);
        a.second_copies16 = a.second_copies16 && in_pieces(a.w_hr[d]);
    }
    if (l.variant.layer_norm) {
        a.norm = norm.weights();
        a.sums = mutable_data_of<F>(kept.emplace_back(call.empty_wide({l.D, l.B, l.G * l.H})));
        call.run_loop(a, false, true, rowwise_forward<S>);
    } else {
        call.run_loop(a, false, false, a.varies ? forward<S, true> : forward<S, false>);
    }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_forward(Tensor x, Tensor h0, OptionalTensor c0,
                                                         std::vector<Tensor> weights, OptionalTensor batch_sizes,
                                                         int64_t cell, int64_t save, bool tf32, OptionalTensor reset,
                                                         bool reset_initial, OptionalNumbers variant,
                                                         OptionalTensor seed) {
    const LayerArgs in{x, h0, c0, weights, batch_sizes, cell, reset, reset_initial, variant, seed};
    const Layer l("layer_forward", in);
    return by_dtype("layer_forward", l.type, [&]<class S>() -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
        const LayerCall<S> call(l, tf32);
        const auto make = [&](std::initializer_list<int64_t> sizes) { return call.empty(sizes); };
        const LayerOutputs out = new_outputs("layer_forward", l, save, make);
        if (l.N > 0) run_forward(call, in, out);
        return {out.y, out.hn, out.cn, out.saved};
    });
}

}  // namespace fused_rnn::cuda
