#include "kernels.cuh"

namespace fused_rnn::cuda {
template void forward<f16, true>(const ForwardArgs<f16>&, const Plan&, Stream);
template void step_cells<f16, true>(const ForwardCells<f16>&, Stream);
template void over_rows(const RebuildArgs<f16>&, Stream);
template void over_rows(const UnprojectedArgs<f16>&, Stream);
template void over_rows(const MaskArgs<f16>&, Stream);
template void over_rows(const MaskedArgs<f16>&, Stream);
template void over_rows(const ResetArgs<f16>&, Stream);
template void over_rows(const PeepholeArgs<f16>&, Stream);
}  // namespace fused_rnn::cuda
