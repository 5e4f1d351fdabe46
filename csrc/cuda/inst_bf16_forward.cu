#include "kernels.cuh"

namespace fused_rnn::cuda {
template void forward<bf16>(const ForwardArgs<bf16>&, const Plan&, Stream);
template void gather_before<bf16>(const BeforeArgs<bf16>&, Stream);
template void sum_starts<bf16>(const SumsArgs<bf16>&, Stream);
template void rebuild_gates<bf16>(const RebuildArgs<bf16>&, Stream);
template void unprojected_rows<bf16>(const UnprojectedArgs<bf16>&, Stream);
}  // namespace fused_rnn::cuda
