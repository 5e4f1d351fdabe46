// FUSED_RNN_CUDA_LIMITS: lowers what a device is taken to have, so that tests reach every way of a loop on one machine.
#pragma once
#include "plan.h"

namespace fused_rnn::cuda {

// Reads the variable at each call; "sms=4,shared=49152,cooperative=0,clusters=8,counts=0:2:1:0:1,clusters_first=1,loops=0",
// each part optional: clusters of at most 8 blocks, of 1, 2, 4, .. blocks so many, and before all other ways. Throws
// std::runtime_error for a text it does not understand.
DeviceLimits lowered(DeviceLimits limits);

}  // namespace fused_rnn::cuda
