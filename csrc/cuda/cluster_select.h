// As select.h, for loops of clusters: which cell, how many rows of a slice.
#pragma once
#include "cluster_backward.h"
#include "cluster_forward.h"
#include "select.h"

namespace fused_rnn::cuda {

// Calls f.operator()<Math, kRowTiles>().
template <class S, class Args, class Function>
void select_cluster(const Args& a, const Plan& plan, const Function& f) {
    const auto with = [&]<class Math>() {
        if (padded_rows(plan.cluster) == kRowTile) return f.template operator()<Math, 1>();
        f.template operator()<Math, 2>();
    };
    select_cell<S>(a, [&](auto math) { with.template operator()<decltype(math)>(); });
}

}  // namespace fused_rnn::cuda
