#include "kernels.cuh"

namespace fused_rnn::cuda {
template void forward<float, false>(const ForwardArgs<float>&, const Plan&, Stream);
template void step_cells<float, false>(const ForwardCells<float>&, Stream);
template void over_rows(const BeforeArgs<float>&, Stream);
template void over_rows(const SumsArgs<float>&, Stream);
}  // namespace fused_rnn::cuda
