// The CUDA library's face: kernels for the ops that schema.cpp declares.
#include "ops.h"

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CUDA, m) {
    m.impl("layer_forward", TORCH_BOX(&fused_rnn::cuda::layer_forward));
    m.impl("exported_layer", TORCH_BOX(&fused_rnn::cuda::layer_forward));
    m.impl("layer_backward", TORCH_BOX(&fused_rnn::cuda::layer_backward));
    m.impl("layer_backward_gates", TORCH_BOX(&fused_rnn::cuda::layer_backward_gates));
    m.impl("own_copies", TORCH_BOX(&fused_rnn::own_copies));
}
