#include "kernels.cuh"

namespace fused_rnn::cuda {
template void forward<f16, false>(const ForwardArgs<f16>&, const Plan&, Stream);
template void step_cells<f16, false>(const ForwardCells<f16>&, Stream);
template void over_rows(const BeforeArgs<f16>&, Stream);
template void over_rows(const SumsArgs<f16>&, Stream);
}  // namespace fused_rnn::cuda
