// The kernels of one storage type, as a GPU runs them. Included by inst_*.cu, one for each type and pass.
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

template <class S>
__global__ void gather_before_kernel(const __grid_constant__ BeforeArgs<S> args) {
    gather_before(Gpu{}, args);
}

template <class S>
__global__ void sum_starts_kernel(const __grid_constant__ SumsArgs<S> args) {
    sum_starts(Gpu{}, args);
}

template <class S>
__global__ void rebuild_gates_kernel(const __grid_constant__ RebuildArgs<S> args) {
    rebuild_gates(Gpu{}, args);
}

template <class S>
__global__ void unprojected_kernel(const __grid_constant__ UnprojectedArgs<S> args) {
    unprojected_rows(Gpu{}, args);
}

template <class S>
void forward(const ForwardArgs<S>& args, const Plan& plan, Stream stream) {
    select<S>(args.cell, plan.tile, [&](auto math, auto choice) {
        launch_loop(forward_kernel<decltype(math), decltype(choice), S>, args, plan, stream);
    });
}

template <class S>
void backward(const BackwardArgs<S>& args, const Plan& plan, Stream stream) {
    select<S>(args.cell, plan.tile, [&](auto math, auto choice) {
        launch_loop(backward_kernel<decltype(math), decltype(choice), S>, args, plan, stream);
    });
}

template <class S>
void gather_before(const BeforeArgs<S>& args, Stream stream) {
    launch_rows(gather_before_kernel<S>, args, args.seq.T, stream);
}

template <class S>
void sum_starts(const SumsArgs<S>& args, Stream stream) {
    launch_rows(sum_starts_kernel<S>, args, args.seq.B, stream);
}

template <class S>
void rebuild_gates(const RebuildArgs<S>& args, Stream stream) {
    launch_rows(rebuild_gates_kernel<S>, args, args.N, stream);
}

template <class S>
void unprojected_rows(const UnprojectedArgs<S>& args, Stream stream) {
    launch_rows(unprojected_kernel<S>, args, args.N, stream);
}

}  // namespace fused_rnn::cuda
