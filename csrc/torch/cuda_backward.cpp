// The backward ops on an accelerator (cuda_backward_pass.h).
#include "cuda_backward_pass.h"

namespace fused_rnn::cuda {

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward(
    OptionalTensor dy, OptionalTensor dhn, OptionalTensor dcn, Tensor x, Tensor h0, OptionalTensor c0,
    std::vector<Tensor> weights, Tensor y, Tensor saved, OptionalTensor batch_sizes, int64_t cell, int64_t needs,
    bool tf32, OptionalTensor reset, bool reset_initial, OptionalNumbers variant, OptionalTensor seed,
    OptionalTensor dcells, bool tell) {
    const LayerArgs in{x, h0, c0, weights, batch_sizes, cell, reset, reset_initial, variant, seed};
    const Layer l("layer_backward", in);
    const Gradients grads{dy, dhn, dcn, y, saved, dcells};
    check_gradients("layer_backward", l, grads);
    return by_dtype("layer_backward", l.type, [&]<class S>() {
        const LayerCall<S> call(l, tf32);
        std::optional<Squares<S>> squares;
        if (tell) squares.emplace(call);
        const BackwardCall<S> pass(call, in, grads, is_lstm(cell) ? needs : needs & ~int64_t(kDc0),
                                   squares ? &*squares : nullptr);
        std::vector<Tensor> dweights = pass.dweights();
        if (squares) dweights.push_back(squares->told());
        return std::tuple(pass.dx(), pass.dh0(), pass.dc0(), std::move(dweights));
    });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer_backward_gates(
    OptionalTensor dy, OptionalTensor dhn, OptionalTensor dcn, Tensor x, Tensor h0, OptionalTensor c0,
    std::vector<Tensor> weights, Tensor y, Tensor saved, OptionalTensor batch_sizes, int64_t cell, bool tf32,
    OptionalTensor reset, bool reset_initial, OptionalNumbers variant, OptionalTensor seed, OptionalTensor dcells) {
    const LayerArgs in{x, h0, c0, weights, batch_sizes, cell, reset, reset_initial, variant, seed};
    const Layer l("layer_backward_gates", in);
    FUSED_RNN_CHECK(!l.variant.layer_norm, "layer_backward_gates: of normalised products it knows no gradients");
    const Gradients grads{dy, dhn, dcn, y, saved, dcells};
    check_gradients("layer_backward_gates", l, grads);
    return by_dtype("layer_backward_gates", l.type, [&]<class S>() {
        const LayerCall<S> call(l, tf32);
        const BackwardCall<S> pass(call, in, grads, kDh0 | (is_lstm(cell) ? int64_t(kDc0) : 0));
        return std::tuple(pass.dh0(), pass.dc0(), pass.all_gates(0, l.G * l.H),
                          biases_apart(cell, l.variant) ? pass.all_gates(3 * l.H, l.H) : call.nothing(),
                          l.projected ? pass.all_dr() : call.nothing());
    });
}

}  // namespace fused_rnn::cuda
