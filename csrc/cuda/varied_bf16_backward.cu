#include "kernels.cuh"

namespace fused_rnn::cuda {
template void backward<bf16, true>(const BackwardArgs<bf16>&, const Plan&, Stream);
}  // namespace fused_rnn::cuda
