#include "kernels.cuh"

namespace fused_rnn::cuda {
template void backward<f16, true>(const BackwardArgs<f16>&, const Plan&, Stream);
template void step_cells<f16, true>(const BackwardCells<f16>&, Stream);
}  // namespace fused_rnn::cuda
