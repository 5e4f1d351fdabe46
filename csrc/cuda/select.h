// From the numbers of a call to the template that serves it: which cell, which tile. The only place where they are chosen.
#pragma once
#include "backward.h"
#include "forward.h"

namespace fused_rnn::cuda {

template <template <class> class ActT, class S>
struct LstmMath {
    using Forward = LstmForward<ActT, S>;
    using Backward = LstmBackward<ActT, S>;
};
template <template <class> class ActT, class S>
struct GruMath {
    using Forward = GruForward<ActT, S>;
    using Backward = GruBackward<ActT, S>;
};
template <template <class> class ActT, class S>
struct GruBeforeMath {
    using Forward = GruBeforeForward<ActT, S>;
    using Backward = GruBeforeBackward<ActT, S>;
};
template <template <class> class ActT, class S>
struct RnnMath {
    using Forward = RnnForward<ActT, S>;
    using Backward = RnnBackward<ActT, S>;
};

template <template <class, int> class Tile_>
struct TileChoice {
    template <class S, int G>
    using Tile = Tile_<S, G>;
};

// Calls f(tile) with a value of the type chosen, of those for more than a few rows. f32 alone has two: as it is, or as TF32.
template <class S, class Function>
void select_batch_tile(int tile, const Function& f) {
    if constexpr (sizeof(S) < 8)
        if (tile == static_cast<int>(TileKind::kTensor)) return f(TileChoice<MmaTile>{});
    if constexpr (sizeof(S) > 2) f(TileChoice<BatchTile>{});
}
template <class S, class Function>
void select_tile(int tile, const Function& f) {
    if (tile == static_cast<int>(TileKind::kFew)) return f(TileChoice<FewTile>{});
    select_batch_tile<S>(tile, f);
}

// Torch's cells.
template <class S, class Args, class Function>
void select_cell(const Args& a, const Function& f) {
    switch (a.cell) {
        case kLstm:
            return f(LstmMath<Standard, S>{});
        case kGru:
            return f(GruMath<Standard, S>{});
        case kRnnTanh:
            return f(RnnMath<Standard, S>{});
        case kRnnRelu:
            return f(RnnMath<Relu, S>{});
    }
}

// Calls f(math). Of other cells than torch's the cell alone is chosen here, the rest of them as a kernel runs.
template <class S, bool kVaried, class Args, class Function>
void select_math(const Args& a, const Function& f) {
    if constexpr (kVaried) {
        if (is_lstm(a.cell)) return f(LstmMath<Any, S>{});
        if (a.variant.reset_before) return f(GruBeforeMath<Any, S>{});
        if (is_gru(a.cell)) return f(GruMath<Any, S>{});
        return f(RnnMath<Any, S>{});
    } else {
        select_cell<S>(a, f);
    }
}

// Calls f(math, tile).
template <class S, bool kVaried, class Args, class Function>
void select(const Args& a, int tile, const Function& f) {
    select_math<S, kVaried>(a, [&](auto math) { select_tile<S>(tile, [&](auto choice) { f(math, choice); }); });
}

}  // namespace fused_rnn::cuda
