#include "kernels.cuh"

namespace fused_rnn::cuda {
template void backward<bf16, true>(const BackwardArgs<bf16>&, const Plan&, Stream);
template void step_cells<bf16, true>(const BackwardCells<bf16>&, Stream);
}  // namespace fused_rnn::cuda
