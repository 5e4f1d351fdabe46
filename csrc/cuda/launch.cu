// What a GPU can do, and the kernel that has no storage type.
#include <map>
#include <mutex>

#include "device.cuh"
#include "gpu_launch.h"
#include "limits.h"

namespace fused_rnn::cuda {
namespace {

// What takes as much of a multiprocessor as a loop may.
__global__ void __launch_bounds__(32 * kClusterWarps, 1) cluster_probe() {}

void count_clusters(DeviceLimits& limits) {
    check(cudaFuncSetAttribute(cluster_probe, cudaFuncAttributeMaxDynamicSharedMemorySize, limits.shared_per_block),
          "asking for shared memory");
    check(cudaFuncSetAttribute(cluster_probe, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
          "asking for large clusters");
    for (int i = 0; i < kClusterSizes; ++i) {
        cudaLaunchAttribute cluster{};
        cluster.id = cudaLaunchAttributeClusterDimension;
        cluster.val.clusterDim = {1u << i, 1, 1};
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(1u << i);
        config.blockDim = dim3(32 * kClusterWarps);
        config.dynamicSmemBytes = static_cast<size_t>(limits.shared_per_block);
        config.attrs = &cluster;
        config.numAttrs = 1;
        if (cudaOccupancyMaxActiveClusters(&limits.clusters[i], cluster_probe, &config) == cudaSuccess) continue;
        limits.clusters[i] = 0;  // a size that this device does not have
        cudaGetLastError();
    }
}

DeviceLimits query(int device) {
    const auto attribute = [device](cudaDeviceAttr which) {
        int value = 0;
        check(cudaDeviceGetAttribute(&value, which, device), "asking the device");
        return value;
    };
    DeviceLimits limits{attribute(cudaDevAttrMultiProcessorCount),
                        attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                        attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
                        attribute(cudaDevAttrMaxThreadsPerMultiProcessor),
                        attribute(cudaDevAttrMaxRegistersPerMultiprocessor),
                        attribute(cudaDevAttrCooperativeLaunch) != 0,
                        {}};
    if (attribute(cudaDevAttrClusterLaunch)) count_clusters(limits);
    return limits;
}

__global__ void write_steps_kernel(const __grid_constant__ Runs runs, int64_t* batch_sizes, int64_t* offsets) {
    write_steps(Gpu{}, runs, batch_sizes, offsets);
}

}  // namespace

DeviceLimits device_limits() {
    static std::mutex mutex;
    static std::map<int, DeviceLimits> known;
    int device = 0;
    check(cudaGetDevice(&device), "asking for the current device");
    const std::lock_guard<std::mutex> lock(mutex);
    auto found = known.find(device);
    if (found == known.end()) found = known.emplace(device, query(device)).first;
    return lowered(found->second);
}

void write_steps(const Runs& runs, int64_t* batch_sizes, int64_t* offsets, Stream stream) {
    write_steps_kernel<<<std::max(runs.count, 1), 256, 0, static_cast<cudaStream_t>(stream)>>>(runs, batch_sizes,
                                                                                               offsets);
    check(cudaGetLastError(), "launching a kernel over steps");
}

}  // namespace fused_rnn::cuda
