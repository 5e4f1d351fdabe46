#include "kernels.cuh"

namespace fused_rnn::cuda {
template void backward<float, false>(const BackwardArgs<float>&, const Plan&, Stream);
template void step_cells<float, false>(const BackwardCells<float>&, Stream);
template void over_rows(const SquaresArgs<float>&, Stream);
}  // namespace fused_rnn::cuda
