// Layer normalisation around the loops of an accelerator: its weights as the kernels take them, what is normalised of a whole
// sequence at once, and the gradients of that.
#pragma once
#include "cuda_layer.h"

namespace fused_rnn::cuda {

template <class S>
class LayerNorm {
    using F = ComputeType<S>;

  public:
    explicit LayerNorm(const LayerCall<S>& call) : call_(call), l(call.l) {
        if (!l.variant.layer_norm) return;
        laid_out_.reserve(4 * kMaxDirections);
        const auto keep = [&](const Tensor* t) -> const S* {
            return t ? data_of<S>(laid_out_.emplace_back(laid_out(*t))) : nullptr;
        };
        for (int64_t d = 0; d < l.D; ++d) {
            const DirectionWeights& w = l.weights[d];
            weights_.x[d] = keep(w.ln_x);
            weights_.h[d] = keep(w.ln_h);
            weights_.c[d] = keep(w.ln_c);
            weights_.c_shift[d] = keep(w.ln_c_shift);
        }
    }

    const Norm<S>& weights() const { return weights_; }

    // Products of direction d [N, G*H] with x, or with h: normalised in place, and kept first, where gates are.
    void normalise(int64_t d, bool hidden, const Tensor& products, const Saved<S>& saved) const {
        S* const keep = saved.gates ? saved.gates + kept_at(hidden) : nullptr;
        over_rows(NormaliseArgs<S>{l.N, count(), gain(d, hidden), mutable_data_of<F>(products), keep, saved.ld_gates},
                  call_.device.stream());
    }

    // From dg: the gradient of x W_ih^T, [N, G*H].
    Tensor product_gradient(int64_t d, const Tensor& dg, const Saved<const S>& saved) const {
        const Tensor to = call_.empty({l.N, count()});
        auto a = gradient_args(d, false, dg, saved);
        a.to = mutable_data_of<S>(to);
        if (l.N > 0) over_rows(a, call_.device.stream());
        return to;
    }
    // Rows whose sum is the gradient of a gain.
    Tensor gain_rows(int64_t d, bool hidden, const Tensor& dg, const Saved<const S>& saved) const {
        const Tensor to = call_.empty_wide({l.N, count()});
        auto a = gradient_args(d, hidden, dg, saved);
        a.dgain = mutable_data_of<F>(to);
        if (l.N > 0) over_rows(a, call_.device.stream());
        return to;
    }

  private:
    int64_t count() const { return l.G * l.H; }
    int64_t kept_at(bool hidden) const {
        return saved_activations_of(l.cell, l.variant) * l.H + (hidden ? count() : 0);
    }
    const S* gain(int64_t d, bool hidden) const { return hidden ? weights_.h[d] : weights_.x[d]; }
    NormGradArgs<S> gradient_args(int64_t d, bool hidden, const Tensor& dg, const Saved<const S>& saved) const {
        const S* const kept = saved.gates + kept_at(hidden);
        return {l.cell,          l.N,     l.H,    l.G, dg.size(1), hidden, data_of<S>(dg), kept, saved.ld_gates,
                gain(d, hidden), nullptr, nullptr};
    }

    const LayerCall<S>& call_;
    const Layer& l;
    std::vector<Tensor> laid_out_;
    Norm<S> weights_{};
};

}  // namespace fused_rnn::cuda
