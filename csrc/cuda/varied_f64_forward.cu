#include "kernels.cuh"

namespace fused_rnn::cuda {
template void forward<double, true>(const ForwardArgs<double>&, const Plan&, Stream);
template void step_cells<double, true>(const ForwardCells<double>&, Stream);
template void over_rows(const RebuildArgs<double>&, Stream);
template void over_rows(const UnprojectedArgs<double>&, Stream);
template void over_rows(const MaskArgs<double>&, Stream);
template void over_rows(const MaskedArgs<double>&, Stream);
template void over_rows(const ResetArgs<double>&, Stream);
template void over_rows(const PeepholeArgs<double>&, Stream);
}  // namespace fused_rnn::cuda
