#include "kernels.cuh"

namespace fused_rnn::cuda {
template void backward<double, false>(const BackwardArgs<double>&, const Plan&, Stream);
}  // namespace fused_rnn::cuda
