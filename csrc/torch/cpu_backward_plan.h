// What a backward pass goes by, and what it has for each direction of the layer.
#pragma once
#include "cpu_before.h"
#include "cpu_first_step.h"
#include "cpu_rebuild.h"
#include "cpu_regular.h"
#include "cpu_reset.h"

namespace fused_rnn {

// In fewer steps than this hardly a gradient vanishes so far that its threads' time goes into subnormal numbers.
constexpr int64_t kStepsToVanish = 64;

// dg of a piece stays within this, and a piece has at least so many rows, as each adds to all weight gradients once.
constexpr int64_t kPieceBytes = 1 << 20;
constexpr int64_t kPieceRows = 512;
// The same where BLAS makes the products.
constexpr int64_t kBlasPieceBytes = 4 << 20;
constexpr int64_t kBlasPieceRows = 1024;
// Weights (and as many gradients of them) beyond this do not stay in the cores' caches: then BLAS.
constexpr int64_t kOwnProductBytes = 5 << 19;
// With fewer columns of dg, packing x for its weight gradient takes too large a part of the time.
constexpr int64_t kOwnProductColumns = 192;

// How the products are made, and where time is cut.
template <class F, class S>
struct BackwardPlan {
    BackwardPlan(const Layer& l, int64_t needs, bool gates_only, bool split_f32, bool tells)
        : needs(needs),
          gates_only(gates_only),
          tells(tells),
          tiles(tiles_for<F, S>(l, split_f32)),
          loop_tiles(loop_tiles_for<F, S>(l, tiles)),
          direct(!loop_tiles && walks_unpacked(l)) {
        const int64_t columns = l.G * l.H, row_bytes = columns * static_cast<int64_t>(sizeof(F));
        const bool own = columns >= kOwnProductColumns && row_bytes * (l.I + l.R) <= kOwnProductBytes;
        by = tiles ? By::kTiles : !direct && own ? By::kPanels : By::kBlas;
        const int64_t rows = by == By::kBlas ? std::max(kBlasPieceRows, kBlasPieceBytes / row_bytes)
                                             : std::max(kPieceRows, kPieceBytes / row_bytes);
        if (l.N > 0) bounds = l.chunks(gates_only ? l.N : rows);
        most_rows = l.most_rows(bounds);
    }

    int64_t needs;
    bool gates_only;  // keep dg of the whole sequence, skip what would follow from it
    bool tells;       // sums of squares of the gradients of every step's states
    const cpu::TileKernels<F, S>*tiles, *loop_tiles;
    bool direct;  // few steps: on weights as they lie
    By by = By::kBlas;
    std::vector<int64_t> bounds = {0};  // of the pieces of time
    int64_t most_rows = 0;              // of one
    int64_t pieces() const { return static_cast<int64_t>(bounds.size()) - 1; }
};

template <class F, class S>
struct BackwardDirection {
    Buffer<F> dh, dc, c0, dh_reset, dc_reset, kept, dgx, dgh, dr, multiplied, cells, mask, dh_full, norm_sums,
        first_sums;
    Compute<F, S> h0, w_ch;
    NormWeights<F, S> norm;
    Weight<F, S> w_hh, w_hr;
    Packed<F, S> packed_hh, packed_hr;
    Product<F, S> w_ih;
    LeftFactor<F, S> dgx_left, dgh_left, dr_left;
    std::optional<GateRebuild<F, S>> rebuild;
    StateBefore<F, S> h_before, c_before;
    ResetState<F, S> reset;
    cpu::BackwardArgs<F, S> args{};  // but for what a piece has of its own

    // `dy`, `dcells`, `y` and `saved`: contiguous.
    void prepare(const BackwardPlan<F, S>& plan, const cpu::Pool& pool, const cpu::Kernels<F, S>& k, const Layer& l,
                 int64_t d, const LayerArgs& in, const Gradients& grads, const std::optional<Tensor>& dy,
                 const std::optional<Tensor>& dcells, const Tensor& y, const Tensor& saved) {
        cpu::BackwardArgs<F, S>& a = args;
        const DirectionWeights& w = l.weights[d];
        if (plan.needs & kDx) w_ih = Product<F, S>(plan.by, pool, k, plan.tiles, *w.w_ih, false);
        if (plan.direct) {
            w_hh = Weight<F, S>(pool, k, *w.w_hh);
            if (l.two_products) w_hr = Weight<F, S>(pool, k, *w.w_hr);
        } else {
            packed_hh = Packed<F, S>(pool, k, plan.loop_tiles, *w.w_hh, 1, false);
            if (l.two_products) packed_hr = Packed<F, S>(pool, k, plan.loop_tiles, *w.w_hr, 1, false);
        }
        const bool sums_resets = l.begins && l.reset_initial;
        dh = gradient_buffer(k, l, grads.dhn, d, l.R);
        h0 = Compute<F, S>(k, in.h0, l.D * l.B, l.R);
        if (sums_resets) dh_reset = gradient_buffer(k, l, {}, d, l.R);
        if (is_lstm(l.cell)) {
            dc = gradient_buffer(k, l, grads.dcn, d, l.H);
            c0 = state_buffer(k, *in.c0, d, l.B, l.H);
            if (sums_resets) dc_reset = gradient_buffer(k, l, {}, d, l.H);
        }
        reset = ResetState<F, S>(k, l, in, d);
        describe(a, l, d);
        a.dy = dy ? data_of<S>(*dy) + d * l.R : nullptr;
        a.ld_dy = l.D * l.R;
        a.dcells = dcells ? data_of<S>(*dcells) + d * l.H : nullptr;
        a.ld_dcells = l.D * l.H;
        a.saved = kept_direction<S>(l, saved, y, d);
        a.h0 = h0.data() + d * l.B * l.R;
        a.ld_h0 = l.R;
        a.c0 = c0.data();
        a.ld_c = cpu::padded(l.H);
        a.dh = dh.data();
        a.ld_dh = cpu::padded(l.R);
        a.dc = dc.data();
        a.ld_dg = l.G * l.H;
        a.ld_dr = l.variant.reset_before ? a.ld_dg : l.R;
        a.w_hh = packed_hh.panels();
        a.w_hr = packed_hr.panels();
        a.reset = reset.args();
        a.dh_reset = dh_reset.data();
        a.dc_reset = dc_reset.data();
        a.unwanted_dh0 = !(plan.needs & kDh0) && !plan.tells;
        w_ch = peepholes(k, w);
        a.w_ch = w_ch.data();
        if (l.variant.layer_norm) {
            norm = NormWeights<F, S>(k, l, w);
            norm_sums = Buffer<F>(l.B * cpu::norm_sums_of(l.cell, l.variant, l.H));
            norm_sums.zero();
            if (l.projected && !plan.direct) dh_full = Buffer<F>(l.B * a.ld_c);
        }
        a.norm = norm.args();
        a.norm_sums = norm_sums.data();
        a.dh_full = dh_full.data();
        mask = recurrent_mask(k, l, d);
        a.mask = mask.data();
        a.seeds = seeds_of(l, d);
        if (plan.tells && a.passes_h()) kept = gradient_buffer(k, l, {}, d, l.R);
        a.kept = kept.data();

        const bool apart = hidden_apart(l.cell, l.variant);
        dgx = Buffer<F>(plan.most_rows * a.ld_dg);
        if (apart) dgh = Buffer<F>(plan.most_rows * a.ld_dg);
        if (l.projected) dr = Buffer<F>(plan.most_rows * a.ld_dr);
        a.dgx = dgx.data();
        a.dgh = dgh ? dgh.data() : dgx.data();
        a.dr = l.variant.reset_before ? a.dgx + 2 * l.H : dr.data();
        const bool rebuilds = l.N > 0 && saved_gates_of(l.cell, l.variant) && !a.saved.gates;
        if (rebuilds) rebuild.emplace(plan.by, pool, k, plan.tiles, l, w, plan.most_rows);
        if (!plan.gates_only && l.two_products) multiplied = Buffer<F>(plan.most_rows * l.H);
        if (l.variant.reset_before) a.rh = multiplied.data();
        if (!plan.gates_only && plan.tiles) {
            dgx_left = LeftFactor<F, S>(plan.tiles, plan.most_rows, a.ld_dg);
            if (apart) dgh_left = LeftFactor<F, S>(plan.tiles, plan.most_rows, a.ld_dg);
            if (l.two_products) dr_left = LeftFactor<F, S>(plan.tiles, plan.most_rows, l.projected ? l.R : l.H);
            const LeftFactor<F, S>& left = apart ? dgh_left : dgx_left;
            const bool all_columns = !l.variant.reset_before;  // where the loop has those of n apart
            a.narrowed = plan.loop_tiles && all_columns ? left.data() : nullptr;
            a.ld_narrowed = left.row();
        }
        if (plan.gates_only && !rebuilds) return;
        h_before = {data_of<S>(y) + d * l.R, l.D * l.R, l.R, a.h0, a.ld_h0, a.reset.h, a.reset.ld_h, a.mask, a.ld_dh,
                    plan.most_rows};
        if (starts_from_zeros(l, in.h0, d)) first_sums = Buffer<F>(l.G * l.H);
        if (!l.variant.peephole && !needs_candidates(l)) return;
        c_before = {a.saved.states, a.saved.ld_states, l.H,     a.c0, a.ld_c,
                    a.reset.c,      a.reset.ld_c,      nullptr, 0,    plan.most_rows};
        cells = Buffer<F>(plan.most_rows * l.H);
    }

  private:
    static Buffer<F> gradient_buffer(const cpu::Kernels<F, S>& k, const Layer& l, const OptionalTensor& grad, int64_t d,
                                     int64_t width) {
        if (grad) return state_buffer(k, *grad, d, l.B, width);
        Buffer<F> buffer(l.B * cpu::padded(width));
        buffer.zero();
        return buffer;
    }
};

}  // namespace fused_rnn
