// The baseline of the compiler's target: SSE2 on x86-64, NEON on aarch64.
#include "kernels.h"

#define FUSED_RNN_VECTOR_BYTES 16
namespace fused_rnn::cpu::generic {
#include "kernels-inl.h"
}  // namespace fused_rnn::cpu::generic

namespace fused_rnn::cpu {
const IsaTable generic_table = {
    "generic", &generic::f32_kernels, &generic::f64_kernels, &generic::bf16_kernels, &generic::f16_kernels, nullptr,
    nullptr};
}  // namespace fused_rnn::cpu
