#define USE_CUDA  // torch's headers declare what a CUDA build has
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/accelerator.h>

#include "accelerator.h"

namespace fused_rnn::cuda {

OnDevice::OnDevice(Place place) : guard_(std::make_shared<torch::stable::accelerator::DeviceGuard>(place.index)) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(place.index, &stream_));
}

void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
    if (out.scalar_type() == a.scalar_type()) {
        TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(out.get(), a.get(), b.get()));
    } else {
        // The shim's own function of this name came with torch 2.11. Autocast leaves out variants alone.
        using torch::stable::detail::from;
        StableIValue stack[4] = {from(a), from(b), from(out.scalar_type()), from(out)};
        TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "dtype_out", stack, TORCH_ABI_VERSION));
        static_cast<void>(torch::stable::detail::to<Tensor>(stack[0]));  // `out` again, to be released
    }
}

void add_multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}

}  // namespace fused_rnn::cuda
