// The CUDA ops on the host: the same torch side, plans and kernels, on CPU tensors, under the ops' names in a namespace of
// their own, so that the suite can run on them where there is no GPU.
#include "../../csrc/torch/cuda_layer.h"
#include "../../csrc/torch/schemas.h"
#include "fibers.h"
#include "host_launch.h"

namespace fused_rnn::cuda {

OnDevice::OnDevice(Place) : stream_(nullptr) {}

void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
    Tensor to = out;
    const auto wide = [&](const Tensor& t) { return torch::stable::to(t, out.scalar_type()); };
    torch::stable::copy_(to, torch::stable::matmul(wide(a), wide(b)));
}

void add_multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
    Tensor to = out;
    torch::stable::copy_(to, torch::stable::subtract(out, torch::stable::matmul(a, b), -1.0));
}

DeviceLimits device_limits() { return host_limits(); }

template <class S>
void forward(const ForwardArgs<S>& args, const Plan& plan, Stream) {
    forward_on_host<Fibers>(args, plan);
}
template <class S>
void backward(const BackwardArgs<S>& args, const Plan& plan, Stream) {
    backward_on_host<Fibers>(args, plan);
}
template <class S>
void gather_before(const BeforeArgs<S>& args, Stream) {
    run_on_host<Fibers>(2, 32, 0, [&](const auto& device) { gather_before(device, args); });
}
template <class S>
void sum_starts(const SumsArgs<S>& args, Stream) {
    run_on_host<Fibers>(2, 32, 0, [&](const auto& device) { sum_starts(device, args); });
}
template <class S>
void rebuild_gates(const RebuildArgs<S>& args, Stream) {
    run_on_host<Fibers>(2, 32, 0, [&](const auto& device) { rebuild_gates(device, args); });
}
template <class S>
void unprojected_rows(const UnprojectedArgs<S>& args, Stream) {
    run_on_host<Fibers>(2, 32, 0, [&](const auto& device) { unprojected_rows(device, args); });
}
void write_steps(const Runs& runs, int64_t* batch_sizes, int64_t* offsets, Stream) {
    run_on_host<Fibers>(2, 32, 0, [&](const auto& device) { write_steps(device, runs, batch_sizes, offsets); });
}

#define FUSED_RNN_INSTANTIATE(S)                                            \
    template void forward<S>(const ForwardArgs<S>&, const Plan&, Stream);   \
    template void backward<S>(const BackwardArgs<S>&, const Plan&, Stream); \
    template void gather_before<S>(const BeforeArgs<S>&, Stream);           \
    template void sum_starts<S>(const SumsArgs<S>&, Stream);                \
    template void rebuild_gates<S>(const RebuildArgs<S>&, Stream);          \
    template void unprojected_rows<S>(const UnprojectedArgs<S>&, Stream);
FUSED_RNN_INSTANTIATE(float)
FUSED_RNN_INSTANTIATE(double)
FUSED_RNN_INSTANTIATE(bf16)
FUSED_RNN_INSTANTIATE(f16)

}  // namespace fused_rnn::cuda

STABLE_TORCH_LIBRARY(fused_rnn_host, m) {
    for (const char* schema : fused_rnn::kSchemas) m.def(schema);
}
STABLE_TORCH_LIBRARY_IMPL(fused_rnn_host, CPU, m) {
    m.impl("layer_forward", TORCH_BOX(&fused_rnn::cuda::layer_forward));
    m.impl("layer_backward", TORCH_BOX(&fused_rnn::cuda::layer_backward));
    m.impl("layer_backward_gates", TORCH_BOX(&fused_rnn::cuda::layer_backward_gates));
}
