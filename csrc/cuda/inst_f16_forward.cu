#include "kernels.cuh"

namespace fused_rnn::cuda {
template void forward<f16>(const ForwardArgs<f16>&, const Plan&, Stream);
template void gather_before<f16>(const BeforeArgs<f16>&, Stream);
template void sum_starts<f16>(const SumsArgs<f16>&, Stream);
template void rebuild_gates<f16>(const RebuildArgs<f16>&, Stream);
template void unprojected_rows<f16>(const UnprojectedArgs<f16>&, Stream);
}  // namespace fused_rnn::cuda
