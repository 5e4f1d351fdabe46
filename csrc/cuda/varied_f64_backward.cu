#include "kernels.cuh"

namespace fused_rnn::cuda {
template void backward<double, true>(const BackwardArgs<double>&, const Plan&, Stream);
template void step_cells<double, true>(const BackwardCells<double>&, Stream);
}  // namespace fused_rnn::cuda
