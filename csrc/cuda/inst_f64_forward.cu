#include "kernels.cuh"

namespace fused_rnn::cuda {
template void forward<double, false>(const ForwardArgs<double>&, const Plan&, Stream);
template void step_cells<double, false>(const ForwardCells<double>&, Stream);
template void over_rows(const BeforeArgs<double>&, Stream);
template void over_rows(const SumsArgs<double>&, Stream);
}  // namespace fused_rnn::cuda
