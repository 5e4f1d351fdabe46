#include "kernels.cuh"

namespace fused_rnn::cuda {
template void forward<bf16, false>(const ForwardArgs<bf16>&, const Plan&, Stream);
template void step_cells<bf16, false>(const ForwardCells<bf16>&, Stream);
template void over_rows(const BeforeArgs<bf16>&, Stream);
template void over_rows(const SumsArgs<bf16>&, Stream);
}  // namespace fused_rnn::cuda
