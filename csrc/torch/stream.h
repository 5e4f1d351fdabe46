// Inference on weights packed once: layers of one direction that carry their state from call to call. Reached from Python
// through module.cpp with raw pointers, as a call must cost no more than a few microseconds.
#pragma once
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "../cpu/hooks.h"

namespace fused_rnn {

// One layer: w_ih [G*H, I], w_hh [G*H, R], b_ih and b_hh [G*H] or null, w_hr [R, H] or null, w_ch [(G-1)*H] or null,
// and what layer normalisation has, or null: ln_x and ln_h [G*H], ln_c and ln_c_shift [H]; contiguous, storage type.
struct StreamLayer {
    int64_t I, H, R;
    const void *w_ih, *w_hh, *b_ih, *b_hh, *w_hr, *w_ch, *ln_x, *ln_h, *ln_c, *ln_c_shift;
};

class Stream {
  public:
    virtual ~Stream() = default;

    // x [T, B, I] -> y [T, B, R], both contiguous; T > 0. The state moves on.
    virtual void run(const void* x, int64_t T, void* y) = 0;

    // h [L, B, R] and, for an LSTM, c [L, B, H].
    virtual void read_state(void* h, void* c) = 0;
    virtual void write_state(const void* h, const void* c) = 0;
    // Zero state, for these rows of the batch or all.
    virtual void clear() = 0;
    virtual void clear(const std::vector<int64_t>& rows) = 0;

    // Another one of zero state on the same packed weights.
    virtual std::unique_ptr<Stream> fork(int64_t B) const = 0;
};

// Packs copies of the weights for the instruction set in force; the pointers are not kept.
// `variant` as the ops' argument.
FUSED_RNN_EXPORT std::unique_ptr<Stream> make_stream(torch::headeronly::ScalarType type, int64_t cell,
                                                     const std::vector<double>& variant, int64_t B,
                                                     const std::vector<StreamLayer>& layers);

}  // namespace fused_rnn
