#include "kernels.cuh"

namespace fused_rnn::cuda {
template void forward<bf16, true>(const ForwardArgs<bf16>&, const Plan&, Stream);
template void step_cells<bf16, true>(const ForwardCells<bf16>&, Stream);
template void over_rows(const RebuildArgs<bf16>&, Stream);
template void over_rows(const UnprojectedArgs<bf16>&, Stream);
template void over_rows(const MaskArgs<bf16>&, Stream);
template void over_rows(const MaskedArgs<bf16>&, Stream);
template void over_rows(const ResetArgs<bf16>&, Stream);
template void over_rows(const PeepholeArgs<bf16>&, Stream);
}  // namespace fused_rnn::cuda
