// The op library's face: schemas and CPU kernels, through torch's stable ABI, free of Python.
#include "ops.h"
#include "schemas.h"

STABLE_TORCH_LIBRARY(fused_rnn, m) {
    for (const char* schema : fused_rnn::kSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CPU, m) {
    m.impl("layer_forward", TORCH_BOX(&fused_rnn::layer_forward));
    m.impl("exported_layer", TORCH_BOX(&fused_rnn::layer_forward));
    m.impl("layer_backward", TORCH_BOX(&fused_rnn::layer_backward));
    m.impl("layer_backward_gates", TORCH_BOX(&fused_rnn::layer_backward_gates));
    m.impl("stack_forward", TORCH_BOX(&fused_rnn::stack_forward));
    m.impl("own_copies", TORCH_BOX(&fused_rnn::own_copies));
}
