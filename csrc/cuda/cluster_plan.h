// Plans for loops of clusters.
#pragma once
#include "plan.h"

namespace fused_rnn::cuda {

struct Candidate {
    Plan plan;
    double clocks;  // of a step
};

// The best of them; no blocks where clusters do not serve the loop, or have no room for it.
Candidate plan_clusters(const LoopShape& shape, const DeviceLimits& limits);

}  // namespace fused_rnn::cuda
