#include "rowwise_kernels.cuh"

namespace fused_rnn::cuda {
template void rowwise_forward(const RowwiseForwardArgs<float>&, const Plan&, Stream);
template void rowwise_backward(const RowwiseBackwardArgs<float>&, const Plan&, Stream);
template void over_rows(const NormaliseArgs<float>&, Stream);
template void over_rows(const NormGradArgs<float>&, Stream);
}  // namespace fused_rnn::cuda
