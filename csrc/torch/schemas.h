// The schemas of the ops, under whatever library name declares them (docs/design.md says what they mean).
#pragma once

namespace fused_rnn {

constexpr const char* kSchemas[] = {
    "layer_forward(Tensor x, Tensor h0, Tensor? c0, Tensor[] weights, Tensor? batch_sizes, int cell, int save,"
    " bool split_f32=False, Tensor? reset=None, bool reset_initial=False,"
    " float[]? variant=None, Tensor? seed=None)"
    " -> (Tensor y, Tensor hn, Tensor cn, Tensor saved)",
    "exported_layer(Tensor x, Tensor h0, Tensor? c0, Tensor[] weights, Tensor? batch_sizes, int cell, int save,"
    " bool split_f32=False, Tensor? reset=None, bool reset_initial=False,"
    " float[]? variant=None, Tensor? seed=None)"
    " -> (Tensor y, Tensor hn, Tensor cn, Tensor saved)",
    "layer_backward(Tensor? dy, Tensor? dhn, Tensor? dcn, Tensor x, Tensor h0, Tensor? c0, Tensor[] weights,"
    " Tensor y, Tensor saved, Tensor? batch_sizes, int cell, int needs, bool split_f32=False, Tensor? reset=None,"
    " bool reset_initial=False, float[]? variant=None, Tensor? seed=None, Tensor? dcells=None, bool tell=False)"
    " -> (Tensor dx, Tensor dh0, Tensor dc0, Tensor[] dweights)",
    "layer_backward_gates(Tensor? dy, Tensor? dhn, Tensor? dcn, Tensor x, Tensor h0, Tensor? c0,"
    " Tensor[] weights, Tensor y, Tensor saved, Tensor? batch_sizes, int cell, bool split_f32=False, Tensor? "
    "reset=None,"
    " bool reset_initial=False, float[]? variant=None, Tensor? seed=None, Tensor? dcells=None)"
    " -> (Tensor dh0, Tensor dc0, Tensor dgx, Tensor dgh, Tensor dr)",
    "stack_forward(Tensor x, Tensor h0, Tensor? c0, Tensor[] weights, Tensor? batch_sizes, int cell, int layers,"
    " bool split_f32=False, Tensor? reset=None, bool reset_initial=False, float[]? variant=None)"
    " -> (Tensor y, Tensor hn, Tensor cn)",
    "own_copies(Tensor[] tensors) -> Tensor[]",
};

}  // namespace fused_rnn
