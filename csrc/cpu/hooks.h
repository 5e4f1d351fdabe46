// The few functions that Python reaches directly (module.cpp), exported from the op library so
// that both see one dispatch state.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "crowd.h"
#include "team.h"

#define FUSED_RNN_EXPORT __attribute__((visibility("default")))

namespace fused_rnn::hooks {

FUSED_RNN_EXPORT std::string isa();
FUSED_RNN_EXPORT std::vector<std::string> isas();
FUSED_RNN_EXPORT void force_isa(const std::string& name);
// `size` of one layer; of several they are walked side by side if that pays. For so many threads; for all of them, where
// none waits for another on the way.
FUSED_RNN_EXPORT cpu::Division divide_loop(const cpu::LoopSize& size, int64_t layers, int threads, int all);
// For tests: what a crowd of its own gives teams that come one after the other and then spend this.
struct TeamRun {
    int64_t now_ns;
    int wanted;
    int64_t duration_ns;
    cpu::Spent spent;
};
FUSED_RNN_EXPORT std::vector<int> threads_of(const std::vector<TeamRun>& runs);
// Whether this thread has ever used a thread pool through an op. A child it forks inherits a pool
// without threads, in which OpenMP waits forever: Python then goes down to one thread.
FUSED_RNN_EXPORT bool used_threads();
FUSED_RNN_EXPORT void note_threads();
// The vector activations of the instruction set in force, for tests of their error; `narrow`: those for 16-bit storage.
FUSED_RNN_EXPORT void narrow_sigmoid(const float* x, float* y, int64_t n);
FUSED_RNN_EXPORT void narrow_tanh(const float* x, float* y, int64_t n);
FUSED_RNN_EXPORT void sigmoid(const float* x, float* y, int64_t n);
FUSED_RNN_EXPORT void sigmoid(const double* x, double* y, int64_t n);
FUSED_RNN_EXPORT void tanh(const float* x, float* y, int64_t n);
FUSED_RNN_EXPORT void tanh(const double* x, double* y, int64_t n);

}  // namespace fused_rnn::hooks
