#include "cluster_kernels.cuh"

namespace fused_rnn::cuda {
template void cluster_forward(const ForwardArgs<bf16>&, const Plan&, Stream);
template void cluster_backward(const BackwardArgs<bf16>&, const Plan&, Stream);
}  // namespace fused_rnn::cuda
