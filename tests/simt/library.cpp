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

template <class S, bool kVaried>
void forward(const ForwardArgs<S>& args, const Plan& plan, Stream) {
    forward_on_host<Fibers, kVaried>(args, plan);
}
template <class S, bool kVaried>
void backward(const BackwardArgs<S>& args, const Plan& plan, Stream) {
    backward_on_host<Fibers, kVaried>(args, plan);
}
template <class S, bool kVaried, class Cells>
void step_cells(const Cells& args, Stream) {
    cells_on_host<Fibers, S, kVaried>(args);
}
template <class S>
void rowwise_forward(const RowwiseForwardArgs<S>& args, const Plan& plan, Stream) {
    rowwise_forward_on_host<Fibers>(args, plan);
}
template <class S>
void rowwise_backward(const RowwiseBackwardArgs<S>& args, const Plan& plan, Stream) {
    rowwise_backward_on_host<Fibers>(args, plan);
}
template <class Args>
void over_rows(const Args& args, Stream) {
    run_on_host<Fibers>(2, 32, 0, [&](const auto& device) { each_row(device, args); });
}
void write_steps(const Runs& runs, int64_t* batch_sizes, int64_t* offsets, Stream) {
    run_on_host<Fibers>(2, 32, 0, [&](const auto& device) { write_steps(device, runs, batch_sizes, offsets); });
}

#define FUSED_RNN_INSTANTIATE(S)                                                        \
    template void forward<S, false>(const ForwardArgs<S>&, const Plan&, Stream);        \
    template void forward<S, true>(const ForwardArgs<S>&, const Plan&, Stream);         \
    template void backward<S, false>(const BackwardArgs<S>&, const Plan&, Stream);      \
    template void backward<S, true>(const BackwardArgs<S>&, const Plan&, Stream);       \
    template void step_cells<S, false>(const ForwardCells<S>&, Stream);                 \
    template void step_cells<S, true>(const ForwardCells<S>&, Stream);                  \
    template void step_cells<S, false>(const BackwardCells<S>&, Stream);                \
    template void step_cells<S, true>(const BackwardCells<S>&, Stream);                 \
    template void rowwise_forward(const RowwiseForwardArgs<S>&, const Plan&, Stream);   \
    template void rowwise_backward(const RowwiseBackwardArgs<S>&, const Plan&, Stream); \
    template void over_rows(const NormaliseArgs<S>&, Stream);                           \
    template void over_rows(const NormGradArgs<S>&, Stream);                            \
    template void over_rows(const BeforeArgs<S>&, Stream);                              \
    template void over_rows(const SumsArgs<S>&, Stream);                                \
    template void over_rows(const RebuildArgs<S>&, Stream);                             \
    template void over_rows(const UnprojectedArgs<S>&, Stream);                         \
    template void over_rows(const MaskArgs<S>&, Stream);                                \
    template void over_rows(const MaskedArgs<S>&, Stream);                              \
    template void over_rows(const ResetArgs<S>&, Stream);                               \
    template void over_rows(const PeepholeArgs<S>&, Stream);                            \
    template void over_rows(const SquaresArgs<S>&, Stream);
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
