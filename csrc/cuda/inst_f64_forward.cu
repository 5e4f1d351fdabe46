#include "kernels.cuh"

namespace fused_rnn::cuda {
template void forward<double>(const ForwardArgs<double>&, const Plan&, Stream);
template void gather_before<double>(const BeforeArgs<double>&, Stream);
template void sum_starts<double>(const SumsArgs<double>&, Stream);
template void rebuild_gates<double>(const RebuildArgs<double>&, Stream);
template void unprojected_rows<double>(const UnprojectedArgs<double>&, Stream);
}  // namespace fused_rnn::cuda
