// What a GPU can do, and the kernel that has no storage type.
#include <map>
#include <mutex>

#include "cluster_layout.h"
#include "device.cuh"
#include "gpu_launch.h"
#include "limits.h"

namespace fused_rnn::cuda {
namespace {

// What takes as much of a multiprocessor as a loop may.
__global__ void __launch_bounds__(kClusterThreads, 1) cluster_probe() {}

void count_clusters(DeviceLimits& limits) {
    cudaFuncAttributes code{};
    check(cudaFuncGetAttributes(&code, cluster_probe), "asking for a kernel");
    if (code.ptxVersion < 90)
        return;  // compiled for GPUs without clusters, translated for this one: nothing is in them
    allow_shared(cluster_probe);
    allow_large_clusters(cluster_probe);
    for (int i = 0; i < kClusterSizes; ++i) {
        Launch launch(1 << i, kClusterThreads, limits.shared_per_block);
        launch.clusters_of(1 << i);
        if (cudaOccupancyMaxActiveClusters(&limits.clusters[i], cluster_probe, launch.config()) == cudaSuccess)
            continue;
        limits.clusters[i] = 0;  // a size that this device does not have
        cudaGetLastError();
    }
}

DeviceLimits query() {
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
    if (found == known.end()) found = known.emplace(device, query()).first;
    return lowered(found->second);
}

void write_steps(const Runs& runs, int64_t* batch_sizes, int64_t* offsets, Stream stream) {
    write_steps_kernel<<<std::max(runs.count, 1), 256, 0, static_cast<cudaStream_t>(stream)>>>(runs, batch_sizes,
                                                                                               offsets);
    check(cudaGetLastError(), "launching a kernel over steps");
}

}  // namespace fused_rnn::cuda
