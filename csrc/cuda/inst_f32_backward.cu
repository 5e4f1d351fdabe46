#include "kernels.cuh"

namespace fused_rnn::cuda {
template void backward<float, false>(const BackwardArgs<float>&, const Plan&, Stream);
}  // namespace fused_rnn::cuda
