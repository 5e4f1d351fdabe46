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
    cudaGetLastError();  // or the next kernel of somebody else's reports it
    throw std::runtime_error(std::string("fused_rnn: ") + what + ": " + cudaGetErrorString(error));
}

// How a kernel is launched: plainly, cooperatively, or in clusters.
class Launch {
  public:
    Launch(int blocks, int threads, int shared_bytes, cudaStream_t stream = nullptr) {
        config_.gridDim = dim3(static_cast<unsigned>(blocks));
        config_.blockDim = dim3(static_cast<unsigned>(threads));
        config_.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
        config_.stream = stream;
        config_.attrs = &attribute_;
    }
    Launch(const Launch&) = delete;

    void cooperative() {
        attribute_.id = cudaLaunchAttributeCooperative;
        attribute_.val.cooperative = 1;
        config_.numAttrs = 1;
    }
    void clusters_of(int blocks) {
        attribute_.id = cudaLaunchAttributeClusterDimension;
        attribute_.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
        config_.numAttrs = 1;
    }
    const cudaLaunchConfig_t* config() const { return &config_; }

  private:
    cudaLaunchAttribute attribute_{};
    cudaLaunchConfig_t config_{};
};

// Of the current device.
inline int attribute(cudaDeviceAttr which) {
    int device = 0, value = 0;
    check(cudaGetDevice(&device), "asking for the current device");
    check(cudaDeviceGetAttribute(&value, which, device), "asking the device");
    return value;
}

// As much as a block may have, not what a launch wants: other threads launch the same kernel meanwhile. It is cheap.
template <class Kernel>
void allow_shared(Kernel* kernel) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)),
          "asking for shared memory");
}
// Of more than eight blocks.
template <class Kernel>
void allow_large_clusters(Kernel* kernel) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "asking for large clusters");
}

template <class Args>
cudaError_t launch_once(void (*kernel)(Args, Grid), const Args& args, const Grid& grid, const Plan& plan,
                        cudaStream_t stream) {
    Launch launch(plan.blocks, plan.threads, plan.shared_bytes, stream);
    if (grid.meets) launch.cooperative();
    return cudaLaunchKernelEx(launch.config(), kernel, args, grid);
}

// Blocks cannot wait for each other: one launch a product.
template <class Args>
void launch_steps(void (*kernel)(Args, Grid), const Args& args, const Plan& plan, cudaStream_t stream) {
    each_step(plan, args.seq.T,
              [&](const Grid& grid) { check(launch_once(kernel, args, grid, plan, stream), "launching a step"); });
}

// Whether all blocks of a loop run at once. A plan counts on registers that code compiled for another GPU may exceed; a launch
// that is captured may tell only when its graph is made.
template <class Kernel>
bool fits_at_once(Kernel* kernel, const Plan& plan) {
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, plan.threads,
                                                        static_cast<size_t>(plan.shared_bytes)),
          "asking how many blocks fit");
    return plan.blocks <= blocks * attribute(cudaDevAttrMultiProcessorCount);
}

template <class Args>
void launch_loop(void (*kernel)(Args, Grid), const Args& args, const Plan& plan, Stream handle) {
    const auto stream = static_cast<cudaStream_t>(handle);
    allow_shared(kernel);
    if (plan.mode == Mode::kSteps || (plan.grid.meets && !fits_at_once(kernel, plan)))
        return launch_steps(kernel, args, plan, stream);
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
    allow_shared(kernel);
    if (plan.cluster.parts > 8) allow_large_clusters(kernel);
    Launch launch(plan.blocks, plan.threads, plan.shared_bytes, static_cast<cudaStream_t>(stream));
    launch.clusters_of(plan.cluster.parts);
    check(cudaLaunchKernelEx(launch.config(), kernel, args, plan.cluster), "launching a loop of clusters");
}

template <class Args>
void launch_rows(void (*kernel)(Args), const Args& args, int64_t rows, Stream stream) {
    kernel<<<static_cast<unsigned>(std::clamp<int64_t>(rows, 1, 2048)), 256, 0, static_cast<cudaStream_t>(stream)>>>(
        args);
    check(cudaGetLastError(), "launching a kernel over rows");
}

}  // namespace fused_rnn::cuda
