#include "kernels.cuh"

namespace fused_rnn::cuda {
template void backward<f16, false>(const BackwardArgs<f16>&, const Plan&, Stream);
template void step_cells<f16, false>(const BackwardCells<f16>&, Stream);
template void over_rows(const SquaresArgs<f16>&, Stream);
}  // namespace fused_rnn::cuda
