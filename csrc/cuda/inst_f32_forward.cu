#include "kernels.cuh"

namespace fused_rnn::cuda {
template void forward<float>(const ForwardArgs<float>&, const Plan&, Stream);
template void gather_before<float>(const BeforeArgs<float>&, Stream);
template void sum_starts<float>(const SumsArgs<float>&, Stream);
template void rebuild_gates<float>(const RebuildArgs<float>&, Stream);
template void unprojected_rows<float>(const UnprojectedArgs<float>&, Stream);
}  // namespace fused_rnn::cuda
