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
struct RnnMath {
    using Forward = RnnForward<ActT, S>;
    using Backward = RnnBackward<ActT, S>;
};

template <template <class, int> class Tile_>
struct TileChoice {
    template <class S, int G>
    using Tile = Tile_<S, G>;
};

// Calls f(math, tile) with a value of the types chosen.
template <class S, class Function>
void select_tile(int tile, const Function& f) {
    if (tile == static_cast<int>(TileKind::kFew)) return f(TileChoice<FewTile>{});
    if constexpr (sizeof(S) == 2) {
        return f(TileChoice<MmaTile>{});
    } else {
        return f(TileChoice<BatchTile>{});
    }
}

template <class S, class Function>
void select(int64_t cell, int tile, const Function& f) {
    const auto with = [&](auto math) { select_tile<S>(tile, [&](auto choice) { f(math, choice); }); };
    switch (cell) {
        case kLstm:
            return with(LstmMath<Standard, S>{});
        case kGru:
            return with(GruMath<Standard, S>{});
        case kRnnTanh:
            return with(RnnMath<Standard, S>{});
        case kRnnRelu:
            return with(RnnMath<Relu, S>{});
        case kLstmLinear:
            return with(LstmMath<Linear, S>{});
        case kGruLinear:
            return with(GruMath<Linear, S>{});
        case kRnnLinear:
            return with(RnnMath<Linear, S>{});
    }
}

}  // namespace fused_rnn::cuda
