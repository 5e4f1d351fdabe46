#include "kernels.cuh"

namespace fused_rnn::cuda {
template void backward<double, false>(const BackwardArgs<double>&, const Plan&, Stream);
template void step_cells<double, false>(const BackwardCells<double>&, Stream);
template void over_rows(const SquaresArgs<double>&, Stream);
}  // namespace fused_rnn::cuda
