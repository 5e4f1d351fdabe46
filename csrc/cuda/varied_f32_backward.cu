#include "kernels.cuh"

namespace fused_rnn::cuda {
template void backward<float, true>(const BackwardArgs<float>&, const Plan&, Stream);
template void step_cells<float, true>(const BackwardCells<float>&, Stream);
}  // namespace fused_rnn::cuda
