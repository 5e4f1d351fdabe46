// ForwardWalk on a layer's packed weights: by matrix tiles where they are given, else by vectors; the loop likewise.
#pragma once
#include "../cpu/forward_walk.h"
#include "cpu_layer.h"

namespace fused_rnn {

template <class Left, class Panel, class F, class S>
cpu::ForwardWalk<F, S, Left, Panel> forward_walk(const cpu::Kernels<F, S>& k, const cpu::TileKernels<F, S>* tiles,
                                                 const cpu::TileKernels<F, S>* loop_tiles,
                                                 const cpu::ForwardArgs<F, S>& args, const S* x, int64_t x_step,
                                                 int64_t x_row, int64_t I, const Packed<F, S>& w_ih, int64_t piece,
                                                 const Buffer<F>& gx, const Buffer<F>& x_rows) {
    cpu::ForwardWalk<F, S, Left, Panel> walk{};
    walk.args = args;
    walk.loop = loop_tiles ? loop_tiles->forward_loop : k.forward_loop;
    walk.x = x;
    walk.x_step = x_step;
    walk.x_row = x_row;
    walk.I = I;
    walk.w_ih_shape = w_ih.shape();
    walk.piece = piece;
    walk.gx = gx.data();
    walk.rows = reinterpret_cast<Left*>(x_rows.data());
    if constexpr (std::is_same_v<Panel, F>) {
        walk.multiply = k.multiply;
        walk.copy = k.copy_in;
        walk.w_ih = w_ih.data();
    } else {
        walk.multiply = tiles->multiply;
        walk.copy = [](const S* from, int64_t ld_from, int64_t rows, int64_t columns, S* to, int64_t ld_to) {
            for (int64_t r = 0; r < rows; ++r) std::copy_n(from + r * ld_from, columns, to + r * ld_to);
        };
        walk.w_ih = w_ih.tiles();
    }
    return walk;
}

}  // namespace fused_rnn
