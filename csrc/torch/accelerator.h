// What an accelerator does for the ops beside its kernels. cuda_accelerator.cpp is a GPU; where tests run the kernels on
// the host (tests/simt), the host stands in.
#pragma once
#include <memory>

#include "../cuda/launch.h"
#include "tensors.h"

namespace fused_rnn::cuda {

// Makes a device the current one for as long as it lives.
class OnDevice {
  public:
    explicit OnDevice(Place place);
    Stream stream() const { return stream_; }  // torch's current one there

  private:
    std::shared_ptr<void> guard_;
    Stream stream_;
};

// out = a b, and out += a b: as torch multiplies matrices there, but that an f32 `out` may take the unrounded product of
// f16 or bf16 factors.
void multiply(const Tensor& out, const Tensor& a, const Tensor& b);
void add_multiply(const Tensor& out, const Tensor& a, const Tensor& b);

}  // namespace fused_rnn::cuda
