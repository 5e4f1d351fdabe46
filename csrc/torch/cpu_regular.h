// What regularisation needs of a direction: seeds of its rows, and the mask of recurrent dropout.
#pragma once
#include "cpu_layer.h"

namespace fused_rnn {

// [B], of direction d; null: nothing is drawn.
inline const int64_t* seeds_of(const Layer& l, int64_t d) { return l.seeds ? l.seeds + d * l.B : nullptr; }

// By which h is multiplied on its way to W_hh, [B, padded(R)], the same at all steps. Empty where nothing is dropped.
template <class F, class S>
Buffer<F> recurrent_mask(const cpu::Kernels<F, S>& k, const Layer& l, int64_t d) {
    if (!l.seeds || l.variant.recurrent_dropout == 0) return {};
    const int64_t ld = cpu::padded(l.R);
    Buffer<F> mask(l.B * ld);
    mask.zero();
    k.draw_mask(seeds_of(l, d), l.variant.recurrent_dropout, l.B, l.R, mask.data(), ld);
    return mask;
}

// Whether c that the output gate saw is not the one that a step leaves, and is asked for.
inline bool needs_candidates(const Layer& l) { return l.variant.zoneout_c > 0 && (l.projected || l.variant.peephole); }

}  // namespace fused_rnn
