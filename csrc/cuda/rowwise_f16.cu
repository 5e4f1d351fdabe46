#include "rowwise_kernels.cuh"

namespace fused_rnn::cuda {
template void rowwise_forward(const RowwiseForwardArgs<f16>&, const Plan&, Stream);
template void rowwise_backward(const RowwiseBackwardArgs<f16>&, const Plan&, Stream);
template void over_rows(const NormaliseArgs<f16>&, Stream);
template void over_rows(const NormGradArgs<f16>&, Stream);
}  // namespace fused_rnn::cuda
