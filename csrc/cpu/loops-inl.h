// The time loops over packed recurrent weights, one slice of the work each (kernels.h: Slice).
// Included inside an ISA namespace.
//
// Threads that share rows split the units and meet at one barrier a step (two with a projection):
// forward, after every h of the step is written; backward, after every gate gradient is.

struct Range {
    int64_t begin, end;
};

FUSED_RNN_INLINE Range share(int64_t count, int64_t part, int64_t parts) {
    return {count * part / parts, count * (part + 1) / parts};
}

template <class F>
FUSED_RNN_INLINE PanelShape shape_of(const Panels<F>& w, int gates) {
    return {w.columns, gates, Simd<F>::W};
}

// Rows of the next block when `left` remain, as even as they come.
FUSED_RNN_INLINE int64_t block_rows(int64_t left) {
    const int64_t blocks = (left + kBlockRows - 1) / kBlockRows;
    return (left + blocks - 1) / blocks;
}

// Forward: h of step t from h of the step before. A panel's products stay in a small buffer in L1
// until the cell has consumed them.
template <class F, class S>
void forward_loop(const ForwardArgs<F, S>& a, int64_t t0, int64_t t1, const Slice& slice) {
    constexpr int W = Simd<F>::W;
    alignas(64) F products[kBlockRows * kMaxVectors * W];
    const int gates = static_cast<int>(gates_of(a.cell));
    const PanelShape shape = shape_of(a.w_hh, gates), r_shape = shape_of(a.w_hr, 1);
    const Range panels = share(shape.count(), slice.part, slice.parts);
    const Range r_panels = a.projected ? share(r_shape.count(), slice.part, slice.parts) : Range{0, 0};

    for (int64_t step = t0; step < t1; ++step) {
        const int64_t t = a.reverse ? t0 + t1 - 1 - step : step;
        const int next = a.next(t);
        const int64_t b1 = slice.b1 < a.seq.rows(t) ? slice.b1 : a.seq.rows(t);
        const F* h = a.h[1 - next];

        for (int64_t p = panels.begin; p < panels.end; ++p) {
            const int vectors = shape.vectors(p);
            const int64_t u0 = shape.first_column(p);
            const int64_t units = (gates > 1 ? 1 : vectors) * W;
            const int64_t u1 = u0 + units < a.H ? u0 + units : a.H;
            const F* panel = a.w_hh.data + shape.offset(p, a.R);
            for (int64_t b = slice.b0, end; b < b1; b = end) {
                end = b + block_rows(b1 - b);
                panel_product(h + b * a.ld_h, a.ld_h, end - b, panel, vectors, a.R, products, vectors * W, false);
                forward_rows(a, t, b, end, u0, u1, products, vectors * W, W, next);
            }
        }
        if (slice.barrier) barrier_wait(slice.barrier);
        if (!a.projected) continue;

        const int64_t final_from = a.final_from(t);
        for (int64_t p = r_panels.begin; p < r_panels.end; ++p) {
            const int vectors = r_shape.vectors(p);
            const int64_t first = r_shape.first_column(p);
            const F* panel = a.w_hr.data + r_shape.offset(p, a.H);
            for (int64_t b = slice.b0, end; b < b1; b = end) {
                end = b + block_rows(b1 - b);
                panel_product(a.h_full + b * a.ld_c, a.ld_c, end - b, panel, vectors, a.H, products, vectors * W,
                              false);
                project_rows(a, t, b, end, first, vectors * W, products, vectors * W, next, final_from);
            }
        }
        if (slice.barrier) barrier_wait(slice.barrier);
    }
}

// Backward: the gate gradients of step t from dh, then dh of the step before from them.
template <class F, class S>
void backward_loop(const BackwardArgs<F, S>& a, int64_t t0, int64_t t1, const Slice& slice) {
    constexpr int W = Simd<F>::W;
    alignas(64) F products[kBlockRows * kMaxVectors * W];
    const int64_t K = gates_of(a.cell) * a.H;
    const PanelShape shape = shape_of(a.w_hh, 1), r_shape = shape_of(a.w_hr, 1);
    const Range panels = share(shape.count(), slice.part, slice.parts);
    const Range h_panels = a.projected ? share(r_shape.count(), slice.part, slice.parts) : Range{0, 0};
    // The columns of dh that this slice owns, the same in both halves of a step: no second barrier.
    const int64_t r0 = shape.first_column(panels.begin);
    const int64_t r1 = panels.end == shape.count() ? a.R : shape.first_column(panels.end);

    for (int64_t step = t0; step < t1; ++step) {
        const int64_t t = a.reverse ? step : t0 + t1 - 1 - step;
        const int64_t b0 = slice.b0;
        const int64_t b1 = slice.b1 < a.seq.rows(t) ? slice.b1 : a.seq.rows(t);
        const int64_t chunk_row = a.seq.row(t) - a.dg_row;

        if (a.projected) {
            output_gradient_rows(a, t, b0, b1, r0, r1);
            if (slice.barrier) barrier_wait(slice.barrier);
            for (int64_t p = h_panels.begin; p < h_panels.end; ++p) {
                const int vectors = r_shape.vectors(p);
                const int64_t u0 = r_shape.first_column(p);
                const int64_t u1 = u0 + vectors * W < a.H ? u0 + vectors * W : a.H;
                for (int64_t b = b0, end; b < b1; b = end) {
                    end = b + block_rows(b1 - b);
                    panel_product(a.dr + (chunk_row + b) * a.ld_dr, a.ld_dr, end - b,
                                  a.w_hr.data + r_shape.offset(p, a.R), vectors, a.R, products, vectors * W, false);
                    backward_rows(a, t, b, end, u0, u1, products, vectors * W, false);
                }
            }
        } else if (r0 < r1 && b0 < b1) {
            backward_rows(a, t, b0, b1, r0, r1, a.dh + b0 * a.ld_dh + r0, a.ld_dh, a.dy != nullptr);
        }
        if (slice.barrier) barrier_wait(slice.barrier);

        const F* dg = (is_gru(a.cell) ? a.dgh : a.dgx) + chunk_row * a.ld_dg;
        for (int64_t p = panels.begin; p < panels.end; ++p) {
            const int vectors = shape.vectors(p);
            const F* panel = a.w_hh.data + shape.offset(p, K);
            F* to = a.dh + shape.first_column(p);
            for (int64_t b = b0, end; b < b1; b = end) {
                end = b + block_rows(b1 - b);
                panel_product(dg + b * a.ld_dg, a.ld_dg, end - b, panel, vectors, K, to + b * a.ld_dh, a.ld_dh,
                              is_gru(a.cell));
            }
        }
    }
}
