#include "rowwise_kernels.cuh"

namespace fused_rnn::cuda {
template void rowwise_forward(const RowwiseForwardArgs<double>&, const Plan&, Stream);
template void rowwise_backward(const RowwiseBackwardArgs<double>&, const Plan&, Stream);
template void over_rows(const NormaliseArgs<double>&, Stream);
template void over_rows(const NormGradArgs<double>&, Stream);
}  // namespace fused_rnn::cuda
