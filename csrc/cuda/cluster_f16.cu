#include "cluster_kernels.cuh"

namespace fused_rnn::cuda {
template void cluster_forward(const ForwardArgs<f16>&, const Plan&, Stream);
template void cluster_backward(const BackwardArgs<f16>&, const Plan&, Stream);
}  // namespace fused_rnn::cuda
