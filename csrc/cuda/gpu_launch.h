// Launching kernels: attributes, cooperative launches, one launch a step where blocks cannot wait for each other.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "launch.h"

namespace fused_rnn::cuda {

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    throw std::runtime_error(std::string("fused_rnn: ") + what + ": " + cudaGetErrorString(error));
}

template <class Args>
cudaError_t launch_once(void (*kernel)(Args, Grid), const Args& args, const Grid& grid, const Plan& plan,
                        cudaStream_t stream) {
    cudaLaunchAttribute cooperative{};
    cooperative.id = cudaLaunchAttributeCooperative;
    cooperative.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(plan.blocks));
    config.blockDim = dim3(static_cast<unsigned>(plan.threads));
    config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
    config.stream = stream;
    config.attrs = &cooperative;
    config.numAttrs = grid.meets ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, args, grid);
}

// Blocks cannot wait for each other: one launch a product.
template <class Args>
void launch_steps(void (*kernel)(Args, Grid), const Args& args, const Plan& plan, cudaStream_t stream) {
    each_step(plan, args.seq.T,
              [&](const Grid& grid) { check(launch_once(kernel, args, grid, plan, stream), "launching a step"); });
}

template <class Args>
void launch_loop(void (*kernel)(Args, Grid), const Args& args, const Plan& plan, Stream handle) {
    const auto stream = static_cast<cudaStream_t>(handle);
    // Cheap, and right for whichever device is current.
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes),
          "asking for shared memory");
    if (plan.mode == Mode::kSteps) return launch_steps(kernel, args, plan, stream);
    const cudaError_t error = launch_once(kernel, args, plan.grid, plan, stream);
    // Less of the device is ours than it says (a share of it, as under MPS).
    if (error == cudaErrorCooperativeLaunchTooLarge) {
        cudaGetLastError();
        return launch_steps(kernel, args, plan, stream);
    }
    check(error, "launching a time loop");
}

template <class Args>
void launch_clusters(void (*kernel)(Args, ClusterGrid), const Args& args, const Plan& plan, Stream stream) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes),
          "asking for shared memory");
    if (plan.cluster.parts > 8)
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
              "asking for a large cluster");
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(plan.cluster.parts), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(plan.blocks));
    config.blockDim = dim3(static_cast<unsigned>(plan.threads));
    config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &cluster;
    config.numAttrs = 1;
    check(cudaLaunchKernelEx(&config, kernel, args, plan.cluster), "launching a loop of clusters");
}

template <class Args>
void launch_rows(void (*kernel)(Args), const Args& args, int64_t rows, Stream stream) {
    kernel<<<static_cast<unsigned>(std::clamp<int64_t>(rows, 1, 2048)), 256, 0, static_cast<cudaStream_t>(stream)>>>(
        args);
    check(cudaGetLastError(), "launching a kernel over rows");
}

}  // namespace fused_rnn::cuda
