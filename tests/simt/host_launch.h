// launch.h for the host: the same plans and kernels, on a pretended device of three small multiprocessors.
#pragma once
#include "../../csrc/cuda/cluster_select.h"
#include "../../csrc/cuda/launch.h"
#include "../../csrc/cuda/limits.h"
#include "../../csrc/cuda/rowwise_backward.h"
#include "../../csrc/cuda/rowwise_forward.h"
#include "../../csrc/cuda/select.h"
#include "host_device.h"

namespace fused_rnn::cuda {

inline DeviceLimits host_limits() { return lowered({3, 48 << 10, 100 << 10, 1024, 1 << 16, true, {0, 2, 1, 0, 1}}); }

template <class Scheduler, class Args, class Kernel>
void launch_loop_on_host(const Args& args, const Plan& plan, const Kernel& kernel) {
    const auto once = [&](const Grid& grid) {
        run_on_host<Scheduler>(plan.blocks, plan.threads, plan.shared_bytes,
                               [&](const HostDevice<Scheduler>& device) { kernel(device, grid); });
    };
    if (plan.mode == Mode::kSteps) {
        each_step(plan, args.seq.T, once);
    } else {
        once(plan.grid);
    }
}

template <class Scheduler, class Kernel>
void launch_clusters_on_host(const Plan& plan, const Kernel& kernel) {
    run_on_host<Scheduler>(plan.blocks, plan.threads, plan.shared_bytes, kernel, plan.cluster.parts);
}

template <class Scheduler, class S>
void cluster_forward_on_host(const ForwardArgs<S>& args, const Plan& plan) {
    select_cluster<S>(args, plan, [&]<class Math, int kRowTiles>() {
        launch_clusters_on_host<Scheduler>(plan, [&](const auto& device) {
            cluster_forward_loop<typename Math::Forward, kRowTiles>(device, args, plan.cluster);
        });
    });
}

template <class Scheduler, class S>
void cluster_backward_on_host(const BackwardArgs<S>& args, const Plan& plan) {
    select_cluster<S>(args, plan, [&]<class Math, int kRowTiles>() {
        launch_clusters_on_host<Scheduler>(plan, [&](const auto& device) {
            cluster_backward_loop<typename Math::Backward, kRowTiles>(device, args, plan.cluster);
        });
    });
}

template <class Scheduler, bool kVaried, class S>
void forward_on_host(const ForwardArgs<S>& args, const Plan& plan) {
    if constexpr (!kVaried && sizeof(S) < 8)
        if (plan.mode == Mode::kClusters) return cluster_forward_on_host<Scheduler>(args, plan);
    select<S, kVaried>(args, plan.tile, [&](auto math, auto choice) {
        launch_loop_on_host<Scheduler>(args, plan, [&](const auto& device, const Grid& grid) {
            forward_loop<typename decltype(math)::Forward, decltype(choice)::template Tile>(device, args, grid);
        });
    });
}

template <class Scheduler, bool kVaried, class S>
void backward_on_host(const BackwardArgs<S>& args, const Plan& plan) {
    if constexpr (!kVaried && sizeof(S) < 8)
        if (plan.mode == Mode::kClusters) return cluster_backward_on_host<Scheduler>(args, plan);
    select<S, kVaried>(args, plan.tile, [&](auto math, auto choice) {
        launch_loop_on_host<Scheduler>(args, plan, [&](const auto& device, const Grid& grid) {
            backward_loop<typename decltype(math)::Backward, decltype(choice)::template Tile>(device, args, grid);
        });
    });
}

template <class Scheduler, class S, bool kVaried, class Cells>
void cells_on_host(const Cells& args) {
    select_math<S, kVaried>(args, [&](auto math) {
        using CellMath = typename Cells::template CellMath<decltype(math)>;
        run_on_host<Scheduler>(2, 32, 0, [&](const auto& device) { cells_of_step<CellMath>(device, args); });
    });
}

template <class Scheduler, class S>
void rowwise_forward_on_host(const RowwiseForwardArgs<S>& args, const Plan& plan) {
    select_batch_tile<S>(plan.tile, [&](auto choice) {
        launch_loop_on_host<Scheduler>(args, plan, [&](const auto& device, const Grid& grid) {
            rowwise_forward_loop<decltype(choice)::template Tile>(device, args, grid);
        });
    });
}

template <class Scheduler, class S>
void rowwise_backward_on_host(const RowwiseBackwardArgs<S>& args, const Plan& plan) {
    select_batch_tile<S>(plan.tile, [&](auto choice) {
        launch_loop_on_host<Scheduler>(args, plan, [&](const auto& device, const Grid& grid) {
            rowwise_backward_loop<decltype(choice)::template Tile>(device, args, grid);
        });
    });
}

}  // namespace fused_rnn::cuda
