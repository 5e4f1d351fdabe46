#include "rowwise_kernels.cuh"

namespace fused_rnn::cuda {
template void rowwise_forward(const RowwiseForwardArgs<bf16>&, const Plan&, Stream);
template void rowwise_backward(const RowwiseBackwardArgs<bf16>&, const Plan&, Stream);
template void over_rows(const NormaliseArgs<bf16>&, Stream);
template void over_rows(const NormGradArgs<bf16>&, Stream);
}  // namespace fused_rnn::cuda
