// A barrier that waits for nobody: linked in place of team.cpp's by sanitize.sh, to prove that its checks see the races.
#include "../../csrc/cpu/kernels.h"

namespace fused_rnn::cpu {
void barrier_wait(Barrier*) {}
}  // namespace fused_rnn::cpu
