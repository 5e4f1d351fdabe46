// The op library's face: schemas and CPU kernels, through torch's stable ABI, free of Python.
#include "ops.h"

STABLE_TORCH_LIBRARY(fused_rnn, m) {
    m.def(
        "layer_forward(Tensor x, Tensor h0, Tensor? c0, Tensor[] weights, Tensor? batch_sizes, int cell, bool save)"
        " -> (Tensor y, Tensor hn, Tensor cn, Tensor saved)");
    m.def(
        "layer_backward(Tensor? dy, Tensor? dhn, Tensor? dcn, Tensor x, Tensor h0, Tensor? c0, Tensor[] weights,"
        " Tensor y, Tensor saved, Tensor? batch_sizes, int cell, int needs)"
        " -> (Tensor dx, Tensor dh0, Tensor dc0, Tensor[] dweights)");
    m.def(
        "layer_backward_gates(Tensor? dy, Tensor? dhn, Tensor? dcn, Tensor x, Tensor h0, Tensor? c0,"
        " Tensor[] weights, Tensor y, Tensor saved, Tensor? batch_sizes, int cell)"
        " -> (Tensor dh0, Tensor dc0, Tensor dgx, Tensor dgh, Tensor dr)");
}

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CPU, m) {
    m.impl("layer_forward", TORCH_BOX(&fused_rnn::layer_forward));
    m.impl("layer_backward", TORCH_BOX(&fused_rnn::layer_backward));
    m.impl("layer_backward_gates", TORCH_BOX(&fused_rnn::layer_backward_gates));
}
