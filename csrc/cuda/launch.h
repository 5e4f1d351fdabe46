// What the torch side calls: kernels on a stream. Implemented for a GPU by launch.cu, inst_*.cu, varied_*.cu,
// rowwise_*.cu and cluster_*.cu; tests implement it for the host (tests/simt). Errors are thrown as std::runtime_error.
#pragma once
#include <vector>

#include "plan.h"
#include "norm_rows.h"
#include "squares.h"
#include "step_cells.h"
#include "varied_rows.h"

namespace fused_rnn::cuda {

using Stream = void*;  // a cudaStream_t

// Of the current device, lowered by the environment variable FUSED_RNN_CUDA_LIMITS (limits.h): tests reach every way of a
// loop by it.
DeviceLimits device_limits();

// The time loops: of torch's cells, and of others.
template <class S, bool kVaried>
void forward(const ForwardArgs<S>& args, const Plan& plan, Stream stream);
template <class S, bool kVaried>
void backward(const BackwardArgs<S>& args, const Plan& plan, Stream stream);
// Of loops whose products are made outside.
template <class S, bool kVaried, class Cells>
void step_cells(const Cells& args, Stream stream);
// Where the plan has clusters.
template <class S>
void cluster_forward(const ForwardArgs<S>& args, const Plan& plan, Stream stream);
template <class S>
void cluster_backward(const BackwardArgs<S>& args, const Plan& plan, Stream stream);
// Those that look at whole rows: with layer normalisation; backward with clipped gradients too.
template <class S>
void rowwise_forward(const RowwiseForwardArgs<S>& args, const Plan& plan, Stream stream);
template <class S>
void rowwise_backward(const RowwiseBackwardArgs<S>& args, const Plan& plan, Stream stream);
// What each_row() is for arguments of this kind.
template <class Args>
void over_rows(const Args& args, Stream stream);
void write_steps(const Runs& runs, int64_t* batch_sizes, int64_t* offsets, Stream stream);

}  // namespace fused_rnn::cuda
