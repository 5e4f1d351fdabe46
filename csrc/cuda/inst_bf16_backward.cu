#include "kernels.cuh"

namespace fused_rnn::cuda {
template void backward<bf16, false>(const BackwardArgs<bf16>&, const Plan&, Stream);
template void step_cells<bf16, false>(const BackwardCells<bf16>&, Stream);
template void over_rows(const SquaresArgs<bf16>&, Stream);
}  // namespace fused_rnn::cuda
