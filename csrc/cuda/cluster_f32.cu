#include "cluster_kernels.cuh"

namespace fused_rnn::cuda {
template void cluster_forward(const ForwardArgs<float>&, const Plan&, Stream);
template void cluster_backward(const BackwardArgs<float>&, const Plan&, Stream);
}  // namespace fused_rnn::cuda
