// The backward ops on the CPU.
#include "cpu_backward_pass.h"
#include "ops.h"

namespace fused_rnn {

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward(
    OptionalTensor dy, OptionalTensor dhn, OptionalTensor dcn, Tensor x, Tensor h0, OptionalTensor c0,
    std::vector<Tensor> weights, Tensor y, Tensor saved, OptionalTensor batch_sizes, int64_t cell, int64_t needs,
    bool split_f32, OptionalTensor reset, bool reset_initial, OptionalNumbers variant, OptionalTensor seed,
    OptionalTensor dcells, bool tell) {
    const LayerArgs in{x, h0, c0, weights, batch_sizes, cell, reset, reset_initial, variant, seed};
    const Layer l("layer_backward", in);
    const Gradients grads{dy, dhn, dcn, y, saved, dcells};
    check_gradients("layer_backward", l, grads);
    if (!is_lstm(cell)) needs &= ~int64_t(kDc0);
    return cpu_by_dtype("layer_backward", l.type, [&]<class F, class S>() {
        BackwardPass<F, S> pass(l, in, grads, needs, false, split_f32, tell);
        if (l.N > 0) {
            pass.run();
        } else {
            pass.zero();
        }
        std::vector<Tensor> dweights = pass.dweights();
        if (tell) dweights.push_back(pass.squares());
        return std::tuple(pass.dx(), pass.dh0(), pass.dc0(), std::move(dweights));
    });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer_backward_gates(
    OptionalTensor dy, OptionalTensor dhn, OptionalTensor dcn, Tensor x, Tensor h0, OptionalTensor c0,
    std::vector<Tensor> weights, Tensor y, Tensor saved, OptionalTensor batch_sizes, int64_t cell, bool split_f32,
    OptionalTensor reset, bool reset_initial, OptionalNumbers variant, OptionalTensor seed, OptionalTensor dcells) {
    const LayerArgs in{x, h0, c0, weights, batch_sizes, cell, reset, reset_initial, variant, seed};
    const Layer l("layer_backward_gates", in);
    const Gradients grads{dy, dhn, dcn, y, saved, dcells};
    check_gradients("layer_backward_gates", l, grads);
    FUSED_RNN_CHECK(!l.variant.layer_norm, "layer_backward_gates: of normalised products it knows no gradients");
    const int64_t needs = kDh0 | (is_lstm(cell) ? int64_t(kDc0) : 0);
    return cpu_by_dtype("layer_backward_gates", l.type, [&]<class F, class S>() {
        using Direction = BackwardDirection<F, S>;
        BackwardPass<F, S> pass(l, in, grads, needs, true, split_f32);
        if (l.N > 0) pass.run();
        const int64_t GH = l.G * l.H;
        const auto none = [&] { return empty({0}, l.type); };  // a new one each, as outputs share no memory
        return std::tuple(pass.dh0(), pass.dc0(), pass.all_rows(&Direction::dgx, GH, 0, GH),
                          hidden_apart(cell, l.variant) ? pass.all_rows(&Direction::dgh, GH, 2 * l.H, l.H) : none(),
                          l.projected ? pass.all_rows(&Direction::dr, l.R, 0, l.R) : none());
    });
}

}  // namespace fused_rnn
