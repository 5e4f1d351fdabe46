// The forward op on the CPU.
#include "cpu_forward_pass.h"

namespace fused_rnn {

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_forward(Tensor x, Tensor h0, OptionalTensor c0,
                                                         std::vector<Tensor> weights, OptionalTensor batch_sizes,
                                                         int64_t cell, int64_t save, bool split_f32,
                                                         OptionalTensor reset, bool reset_initial,
                                                         OptionalNumbers variant, OptionalTensor seed) {
    const LayerArgs in{x, h0, c0, weights, batch_sizes, cell, reset, reset_initial, variant, seed};
    const Layer l("layer_forward", in);
    const auto make = [&](std::initializer_list<int64_t> sizes) { return empty(sizes, l.type); };
    const LayerOutputs out = new_outputs("layer_forward", l, save, make);
    if (l.N > 0) {
        cpu_by_dtype("layer_forward", l.type,
                     [&]<class F, class S>() { ForwardPass<F, S>(l, in, out, split_f32).run(out); });
    }
    return {out.y, out.hn, out.cn, out.saved};
}

}  // namespace fused_rnn
