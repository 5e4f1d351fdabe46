// The ops as docs/design.md gives them.
#pragma once
#include <tuple>

#include "tensors.h"

namespace fused_rnn {

// The same for every device.
using LayerForward = std::tuple<Tensor, Tensor, Tensor, Tensor>(Tensor x, Tensor h0, OptionalTensor c0,
                                                                std::vector<Tensor> weights, OptionalTensor batch_sizes,
                                                                int64_t cell, int64_t save, bool split_f32,
                                                                OptionalTensor reset, bool reset_initial,
                                                                OptionalNumbers variant, OptionalTensor seed);
using LayerBackward = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>(
    OptionalTensor dy, OptionalTensor dhn, OptionalTensor dcn, Tensor x, Tensor h0, OptionalTensor c0,
    std::vector<Tensor> weights, Tensor y, Tensor saved, OptionalTensor batch_sizes, int64_t cell, int64_t needs,
    bool split_f32, OptionalTensor reset, bool reset_initial, OptionalNumbers variant, OptionalTensor seed,
    OptionalTensor dcells, bool tell);
using LayerBackwardGates = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(
    OptionalTensor dy, OptionalTensor dhn, OptionalTensor dcn, Tensor x, Tensor h0, OptionalTensor c0,
    std::vector<Tensor> weights, Tensor y, Tensor saved, OptionalTensor batch_sizes, int64_t cell, bool split_f32,
    OptionalTensor reset, bool reset_initial, OptionalNumbers variant, OptionalTensor seed, OptionalTensor dcells);

using StackForward = std::tuple<Tensor, Tensor, Tensor>(Tensor x, Tensor h0, OptionalTensor c0,
                                                        std::vector<Tensor> weights, OptionalTensor batch_sizes,
                                                        int64_t cell, int64_t layers, bool split_f32,
                                                        OptionalTensor reset, bool reset_initial,
                                                        OptionalNumbers variant);

LayerForward layer_forward;
LayerBackward layer_backward;
LayerBackwardGates layer_backward_gates;
StackForward stack_forward;  // the CPU's only

// What a graph keeps of tensors that may be changed in place later. Of torch's own copies compilers know that they may as well be
// made later.
inline std::vector<Tensor> own_copies(std::vector<Tensor> tensors) {
    for (Tensor& tensor : tensors) tensor = copied(tensor);
    return tensors;
}

namespace cuda {
LayerForward layer_forward;
LayerBackward layer_backward;
LayerBackwardGates layer_backward_gates;
}  // namespace cuda

}  // namespace fused_rnn
