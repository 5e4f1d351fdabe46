// What a backward may tell of its gradients, on any device. Plain data, as in sequence.h.
#pragma once
#include <cstdint>

namespace fused_rnn {

// Of a row: sums of squares of the whole gradients of h and c; of what came to them from the step after; of the same as it was
// sent, before it was clipped; and of two parts of what was sent to h, past W_hh and through it. Numbers are part of the op
// contract (docs/design.md).
enum Square : int64_t {
    kSquareH,
    kSquareC,
    kSquareLaterH,
    kSquareLaterC,
    kSquareSentH,
    kSquareSentC,
    kSquareKept,
    kSquareRecurrent,
    kSquareCount,
};

}  // namespace fused_rnn
