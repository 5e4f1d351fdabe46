// The ops as docs/design.md gives them.
#pragma once
#include <tuple>

#include "tensors.h"

namespace fused_rnn {

struct LayerOutputs {
    Tensor y, hn, cn, saved;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_forward(Tensor x, Tensor h0, OptionalTensor c0,
                                                         std::vector<Tensor> weights, OptionalTensor batch_sizes,
                                                         int64_t cell, bool save);

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward(
    OptionalTensor dy, OptionalTensor dhn, OptionalTensor dcn, Tensor x, Tensor h0, OptionalTensor c0,
    std::vector<Tensor> weights, Tensor y, Tensor saved, OptionalTensor batch_sizes, int64_t cell, int64_t needs);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer_backward_gates(OptionalTensor dy, OptionalTensor dhn,
                                                                        OptionalTensor dcn, Tensor x, Tensor h0,
                                                                        OptionalTensor c0, std::vector<Tensor> weights,
                                                                        Tensor y, Tensor saved,
                                                                        OptionalTensor batch_sizes, int64_t cell);

}  // namespace fused_rnn
