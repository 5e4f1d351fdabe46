// The kernels of one storage type that look at whole rows. Included by rowwise_*.cu, one for each type.
#pragma once
#include "kernels.cuh"
#include "rowwise_backward.h"
#include "rowwise_forward.h"

namespace fused_rnn::cuda {

// As many threads as may have kMaxRegisters at once: that is their bound, of which plans count on no more than kMaxThreads.
constexpr int kRowwiseThreads = (1 << 16) / kMaxRegisters / 32 * 32;

template <class Choice, class S>
__global__ void __launch_bounds__(kRowwiseThreads, 1)
    rowwise_forward_kernel(const __grid_constant__ RowwiseForwardArgs<S> args, const __grid_constant__ Grid grid) {
    rowwise_forward_loop<Choice::template Tile>(Gpu{}, args, grid);
}

template <class Choice, class S>
__global__ void __launch_bounds__(kRowwiseThreads, 1)
    rowwise_backward_kernel(const __grid_constant__ RowwiseBackwardArgs<S> args, const __grid_constant__ Grid grid) {
    rowwise_backward_loop<Choice::template Tile>(Gpu{}, args, grid);
}

template <class S>
void rowwise_forward(const RowwiseForwardArgs<S>& args, const Plan& plan, Stream stream) {
    select_batch_tile<S>(
        plan.tile, [&](auto choice) { launch_loop(rowwise_forward_kernel<decltype(choice), S>, args, plan, stream); });
}

template <class S>
void rowwise_backward(const RowwiseBackwardArgs<S>& args, const Plan& plan, Stream stream) {
    select_batch_tile<S>(
        plan.tile, [&](auto choice) { launch_loop(rowwise_backward_kernel<decltype(choice), S>, args, plan, stream); });
}

}  // namespace fused_rnn::cuda
