// What a backward on an accelerator tells of its gradients: buffers in which its loop notes them, and their squares summed up.
#pragma once
#include "cuda_layer.h"

namespace fused_rnn::cuda {

template <class S>
class Squares {
    using F = ComputeType<S>;

  public:
    explicit Squares(const LayerCall<S>& call)
        : call_(call), told_(empty_at(call.place, {kSquareCount, call.l.D, call.l.N}, ScalarType::Double)) {}

    // Before the loop, and after it.
    void note(BackwardArgs<S>& a) {
        a.sent_h = buffer(a.R);
        if (!is_lstm(a.cell)) return;
        a.sent_c = buffer(a.H);
        a.whole_c = buffer(a.H);
    }
    void sum(const BackwardArgs<S>& a) {
        over_rows(SquaresArgs<S>{a, mutable_data_of<double>(told_)}, call_.device.stream());
        noted_.clear();
    }

    // [kSquareCount, D, N]
    Tensor told() const { return told_; }

  private:
    F* buffer(int64_t size) {
        return mutable_data_of<F>(noted_.emplace_back(call_.empty_wide({call_.l.D, call_.l.N, size})));
    }

    const LayerCall<S>& call_;
    const Tensor told_;
    std::vector<Tensor> noted_;
};

}  // namespace fused_rnn::cuda
