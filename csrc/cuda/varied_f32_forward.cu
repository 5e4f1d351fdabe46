#include "kernels.cuh"

namespace fused_rnn::cuda {
template void forward<float, true>(const ForwardArgs<float>&, const Plan&, Stream);
template void step_cells<float, true>(const ForwardCells<float>&, Stream);
template void over_rows(const RebuildArgs<float>&, Stream);
template void over_rows(const UnprojectedArgs<float>&, Stream);
template void over_rows(const MaskArgs<float>&, Stream);
template void over_rows(const MaskedArgs<float>&, Stream);
template void over_rows(const ResetArgs<float>&, Stream);
template void over_rows(const PeepholeArgs<float>&, Stream);
}  // namespace fused_rnn::cuda
