// The kernels of one storage type, as a GPU runs them. Included by inst_*.cu and varied_*.cu, one for each type and pass,
// and by rowwise_kernels.cuh.
#pragma once
#include "device.cuh"
#include "gpu_launch.h"
#include "select.h"

namespace fused_rnn::cuda {

template <class Math, class Choice, class S>
__global__ void __launch_bounds__(kMaxThreads, 1)
    forward_kernel(const __grid_constant__ ForwardArgs<S> args, const __grid_constant__ Grid grid) {
    forward_loop<typename Math::Forward, Choice::template Tile>(Gpu{}, args, grid);
}

template <class Math, class Choice, class S>
__global__ void __launch_bounds__(kMaxThreads, 1)
    backward_kernel(const __grid_constant__ BackwardArgs<S> args, const __grid_constant__ Grid grid) {
    backward_loop<typename Math::Backward, Choice::template Tile>(Gpu{}, args, grid);
}

template <class CellMath, class Args>
__global__ void cells_kernel(const __grid_constant__ Args args) {
    cells_of_step<CellMath>(Gpu{}, args);
}

template <class Args>
__global__ void rows_kernel(const __grid_constant__ Args args) {
    each_row(Gpu{}, args);
}

template <class S, bool kVaried>
void forward(const ForwardArgs<S>& args, const Plan& plan, Stream stream) {
    if constexpr (!kVaried && sizeof(S) < 8)
        if (plan.mode == Mode::kClusters) return cluster_forward(args, plan, stream);
    select<S, kVaried>(args, plan.tile, [&](auto math, auto choice) {
        launch_loop(forward_kernel<decltype(math), decltype(choice), S>, args, plan, stream);
    });
}

template <class S, bool kVaried>
void backward(const BackwardArgs<S>& args, const Plan& plan, Stream stream) {
    if constexpr (!kVaried && sizeof(S) < 8)
        if (plan.mode == Mode::kClusters) return cluster_backward(args, plan, stream);
    select<S, kVaried>(args, plan.tile, [&](auto math, auto choice) {
        launch_loop(backward_kernel<decltype(math), decltype(choice), S>, args, plan, stream);
    });
}

template <class S, bool kVaried, class Cells>
void step_cells(const Cells& args, Stream stream) {
    select_math<S, kVaried>(args, [&](auto math) {
        using CellMath = typename Cells::template CellMath<decltype(math)>;
        launch_rows(cells_kernel<CellMath, Cells>, args, args.D * args.seq.B, stream);
    });
}

template <class Args>
void over_rows(const Args& args, Stream stream) {
    launch_rows(rows_kernel<Args>, args, args.rows(), stream);
}

}  // namespace fused_rnn::cuda
