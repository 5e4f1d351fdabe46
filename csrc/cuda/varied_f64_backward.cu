#include "kernels.cuh"

namespace fused_rnn::cuda {
template void backward<double, true>(const BackwardArgs<double>&, const Plan&, Stream);
}  // namespace fused_rnn::cuda
