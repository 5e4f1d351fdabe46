// The kernels of one storage type that run in clusters. Included by cluster_*.cu, one for each type.
#pragma once
#include "cluster_select.h"
#include "device.cuh"
#include "gpu_launch.h"

namespace fused_rnn::cuda {

// Where there are no clusters no plan asks for these (launch.cu).
template <class Math, int kRowTiles, class S>
__global__ void __launch_bounds__(kClusterThreads, 1)
    cluster_forward_kernel(const __grid_constant__ ForwardArgs<S> args, const __grid_constant__ ClusterGrid grid) {
#if __CUDA_ARCH__ >= 900
    cluster_forward_loop<typename Math::Forward, kRowTiles>(Gpu{}, args, grid);
#else
    __trap();
#endif
}

template <class Math, int kRowTiles, class S>
__global__ void __launch_bounds__(kClusterThreads, 1)
    cluster_backward_kernel(const __grid_constant__ BackwardArgs<S> args, const __grid_constant__ ClusterGrid grid) {
#if __CUDA_ARCH__ >= 900
    cluster_backward_loop<typename Math::Backward, kRowTiles>(Gpu{}, args, grid);
#else
    __trap();
#endif
}

template <class S>
void cluster_forward(const ForwardArgs<S>& args, const Plan& plan, Stream stream) {
    select_cluster<S>(args, plan, [&]<class Math, int kRowTiles>() {
        launch_clusters(cluster_forward_kernel<Math, kRowTiles, S>, args, plan, stream);
    });
}

template <class S>
void cluster_backward(const BackwardArgs<S>& args, const Plan& plan, Stream stream) {
    select_cluster<S>(args, plan, [&]<class Math, int kRowTiles>() {
        launch_clusters(cluster_backward_kernel<Math, kRowTiles, S>, args, plan, stream);
    });
}

}  // namespace fused_rnn::cuda
