// The time loops over packed recurrent weights, one slice of the work each (kernels.h: Slice).
// Included inside an ISA namespace.
//
// Threads that share rows split the units and meet at one barrier a step (two where it has two products): forward, after
// every h of the step is written; backward, after every gate gradient is (and around a clip). Where rows are taken whole they
// meet once more, on either side of that.

struct Range {
    int64_t begin, end;
};

FUSED_RNN_INLINE Range share(int64_t count, int64_t part, int64_t parts) {
    return {count * part / parts, count * (part + 1) / parts};
}

// Of rows up to b1, those that a member of a slice takes whole.
FUSED_RNN_INLINE Range share_rows(const Slice& slice, int64_t b1) {
    const Range own = share(b1 > slice.b0 ? b1 - slice.b0 : 0, slice.part, slice.parts);
    return {slice.b0 + own.begin, slice.b0 + own.end};
}

template <class F>
FUSED_RNN_INLINE PanelShape shape_of(const Panels<F>& w, int gates) {
    return {w.columns, gates, Simd<F>::W};
}

// The left factor of a step's products, in register tiles: rows of the compute type, as they lie.
template <class F>
struct Rows {
    using Packed = F;
    static constexpr int64_t kBlock = kBlockRows;
    const F* a = nullptr;
    int64_t ld = 0, K = 0;

    void set(const F* rows, int64_t row, int64_t depth, bf16* = nullptr) {
        a = rows;
        ld = row;
        K = depth;
    }
    // That a panel, which stays in L1, serves one after the other.
    int64_t blocks_at_once() const { return int64_t(1) << 40; }
    void take(int64_t, int64_t) {}
    static int64_t packed_depth(int64_t K) { return K; }
    void multiply(int64_t b, int64_t end, const Panel<F>& panel, F* c, int64_t ldc, bool accumulate) {
        panel_product(a + b * ld, ld, end - b, panel, K, c, ldc, accumulate);
    }
};

// f(p, q, b, end) for all panels p and blocks of rows, blocks as even as they come; q comes after p, -1: the same again, or
// none. Panels come by turns from the first and from the last, `back` says whose turn it is: of weights that do not fit a
// cache as a whole it still has those used last.
template <class Operand, class Function>
FUSED_RNN_INLINE void for_each_block(Operand& operand, Range panels, int64_t b0, int64_t b1, bool& back,
                                     const Function& f) {
    const int64_t blocks = b1 > b0 ? (b1 - b0 + Operand::kBlock - 1) / Operand::kBlock : 0;
    const int64_t most = operand.blocks_at_once(), count = panels.end - panels.begin;
    const auto from = [&](int64_t i) { return b0 + (b1 - b0) * i / blocks; };
    for (int64_t i0 = 0; i0 < blocks; i0 += most) {
        const int64_t i1 = blocks - i0 < most ? blocks : i0 + most;
        operand.take(from(i0), from(i1));
        for (int64_t k = 0; k < count; ++k) {
            const int64_t p = back ? panels.end - 1 - k : panels.begin + k;
            const int64_t after = k + 1 == count ? -1 : back ? p - 1 : p + 1;
            for (int64_t i = i0; i < i1; ++i) f(p, i + 1 < i1 ? -1 : after, from(i), from(i + 1));
        }
        back = !back;
    }
}

// A matrix in panels of so many rows.
template <class T>
struct PanelMatrix {
    const T* data;
    PanelShape shape;
    int64_t depth;
    bool far;

    // Panel p from row k on; q comes after it, or -1.
    Panel<T> at(int64_t p, int64_t q, int64_t k = 0) const {
        const auto from = [&](int64_t of) { return data + shape.offset(of, depth) + k * shape.vectors(of) * shape.W; };
        return {from(p), shape.vectors(p), q < 0 ? nullptr : from(q), far};
    }
};

template <class T>
int64_t panel_bytes(const PanelShape& shape, Range panels, int64_t depth) {
    return shape.offset(panels.end - panels.begin, depth) * static_cast<int64_t>(sizeof(T));
}

// The weights of a loop, as its operand takes them: those of its first and of its second product.
template <class Operand, class F>
struct LoopWeights {
    using T = typename Operand::Packed;
    PanelMatrix<T> first, second;

    LoopWeights(const Panels<F>& w, const PanelShape& shape, Range panels, const Panels<F>& w_second,
                const PanelShape& second_shape, Range second_panels)
        : first{reinterpret_cast<const T*>(w.data), shape, Operand::packed_depth(w.K), false},
          second{reinterpret_cast<const T*>(w_second.data), second_shape, Operand::packed_depth(w_second.K), false} {
        const int64_t bytes =
            panel_bytes<T>(shape, panels, first.depth) + panel_bytes<T>(second_shape, second_panels, second.depth);
        first.far = second.far = bytes > kL2Bytes;
    }
};

// to (+)= sums [rows, width], their first columns: of a panel that ends past the last one, or is stored in another type.
template <class F, class To>
FUSED_RNN_INLINE void store_sums(const F* sums, int64_t width, int64_t rows, int64_t columns, To* to, int64_t ld,
                                 bool accumulate) {
    constexpr int W = Simd<F>::W;
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t k = 0; k < columns; k += W) {
            const int lanes = columns - k < W ? static_cast<int>(columns - k) : W;
            Vec<F> v = load<F>(sums + i * width + k, W);
            if (accumulate) v += load<F>(to + i * ld + k, lanes);
            store(to + i * ld + k, v, lanes);
        }
    }
}

// Columns from `first` on, as many as the panel has, in rows [0, rows) of c (+)= a times it. Nothing is written past the
// last of `columns`: the panel that ends there goes through a buffer.
template <class F, bool Across>
FUSED_RNN_INLINE void multiply_panel(const F* a, int64_t lda, int64_t rows, const Panel<F>& panel, int64_t first,
                                     int64_t columns, int64_t K, F* c, int64_t ldc, bool accumulate) {
    constexpr int W = Simd<F>::W;
    const int64_t width = panel.vectors * W, left = columns - first;
    c += first;
    if (left >= width) return panel_product<F, Across>(a, lda, rows, panel, K, c, ldc, accumulate);
    alignas(64) F sums[kBlockRows * kMaxVectors * W];
    panel_product<F, Across>(a, lda, rows, panel, K, sums, width, false);
    store_sums(sums, width, rows, left, c, ldc, accumulate);
}

// A product that is not sequential, over panels [p0, p1).
template <class F>
void multiply_panels(const F* a, int64_t lda, int64_t M, const F* panels, PanelShape shape, int64_t K, int64_t p0,
                     int64_t p1, F* c, int64_t ldc, bool accumulate) {
    Rows<F> operand;
    const Range all{p0, p1};
    const PanelMatrix<F> matrix{panels, shape, K, panel_bytes<F>(shape, all, K) > kL2Bytes};
    bool back = false;
    for_each_block(operand, all, 0, M, back, [&](int64_t p, int64_t q, int64_t b, int64_t end) {
        multiply_panel<F, false>(a + b * lda, lda, end - b, matrix.at(p, q), shape.first_column(p), shape.columns, K,
                                 c + b * ldc, ldc, accumulate);
    });
}

// The same of a^T, for a [K, M] whose rows lie far apart: a block of it is copied for all panels.
template <class F>
void multiply_across(const F* a, int64_t lda, int64_t M, const F* panels, PanelShape shape, int64_t K, int64_t p0,
                     int64_t p1, F* c, int64_t ldc, bool accumulate) {
    constexpr int64_t vector_bytes = Simd<F>::W * static_cast<int64_t>(sizeof(F));
    constexpr int64_t slab = kSlabBytes / (kMaxVectors * vector_bytes);
    const PanelMatrix<F> matrix{panels, shape, K, panel_bytes<F>(shape, {p0, p1}, K < slab ? K : slab) > kL2Bytes};
    F* const block = static_cast<F*>(thread_scratch(slab * kBlockRows * static_cast<int64_t>(sizeof(F))));
    for (int64_t m = 0; m < M; m += kBlockRows) {
        const int64_t rows = M - m < kBlockRows ? M - m : kBlockRows;
        int64_t k = 0;
        do {  // once for K = 0, too: the sums are zero
            const int64_t depth = K - k < slab ? K - k : slab;
            for (int64_t i = 0; i < depth; ++i) {
                for (int64_t j = 0; j < rows; j += Simd<F>::W) {
                    const int lanes = rows - j < Simd<F>::W ? static_cast<int>(rows - j) : Simd<F>::W;
                    store(block + i * kBlockRows + j, load<F>(a + (k + i) * lda + m + j, lanes), lanes);
                }
            }
            for (int64_t p = p0; p < p1; ++p) {
                multiply_panel<F, true>(block, kBlockRows, rows, matrix.at(p, p + 1 < p1 ? p + 1 : -1, k),
                                        shape.first_column(p), shape.columns, depth, c + m * ldc, ldc,
                                        accumulate || k > 0);
            }
            k += slab;
        } while (k < K);
    }
}

// Forward: h of step t from h of the step before. Products stay in a small buffer in L1 until the cell has consumed them:
// a panel's, or, of few rows and panels of few units, those of all panels, so that the cell is called once a step.
template <class Operand, class F, class S>
void forward_loop(const ForwardArgs<F, S>& a, int64_t t0, int64_t t1, const Slice& slice) {
    constexpr int W = Simd<F>::W;
    alignas(64) F products[Operand::kBlock * kMaxVectors * W];
    Operand operand;
    const int gates = static_cast<int>(panel_gates(a.cell, a.variant));
    const PanelShape shape = shape_of(a.w_hh, gates), r_shape = shape_of(a.w_hr, 1);
    const bool by_rows = a.variant.layer_norm;
    const Range panels = share(shape.count(), slice.part, slice.parts);
    const Range r_panels = a.two_products ? share(r_shape.count(), slice.part, slice.parts) : Range{0, 0};
    const LoopWeights<Operand, F> w(a.w_hh, shape, panels, a.w_hr, r_shape, r_panels);
    const int64_t width = shape.offset(panels.end - panels.begin, 1);  // of a row's products
    const bool at_once = gates > 1 && !by_rows && (slice.b1 - slice.b0) * width <= Operand::kBlock * kMaxVectors * W;
    const int64_t first = shape.first_column(panels.begin), last = shape.first_column(panels.end);
    bool back = false, r_back = false;

    for (int64_t step = t0; step < t1; ++step) {
        const int64_t t = a.reverse ? t0 + t1 - 1 - step : step;
        const int next = a.next(t);
        const int64_t b1 = slice.b1 < a.seq.rows(t) ? slice.b1 : a.seq.rows(t);

        operand.set(a.left(1 - next), a.ld_h, a.multiplies(t) ? a.R : 0);
        for_each_block(operand, panels, slice.b0, b1, back, [&](int64_t p, int64_t q, int64_t b, int64_t end) {
            const int vectors = shape.vectors(p);
            const int64_t u0 = shape.first_column(p);
            if (by_rows) {
                F* to = a.hg + b * a.ld_gx + u0;
                return operand.multiply(b, end, w.first.at(p, q), to, a.ld_gx, false);
            }
            if (at_once) {
                F* to = products + (b - slice.b0) * width + shape.offset(p - panels.begin, 1);
                return operand.multiply(b, end, w.first.at(p, q), to, width, false);
            }
            const int64_t units = (gates > 1 ? 1 : vectors) * W;
            const int64_t u1 = u0 + units < a.H ? u0 + units : a.H;
            operand.multiply(b, end, w.first.at(p, q), products, vectors * W, false);
            forward_rows(a, t, b, end, u0, u1, products, vectors * W, W, 1, next);
        });
        if (at_once) forward_rows(a, t, slice.b0, b1, first, last < a.H ? last : a.H, products, width, W, gates, next);
        if (slice.barrier) barrier_wait(slice.barrier);
        if (by_rows) {
            const Range own = share_rows(slice, b1);
            forward_rows(a, t, own.begin, own.end, 0, a.H, a.hg + own.begin * a.ld_gx, a.ld_gx, a.H, 1, next);
            if (slice.barrier) barrier_wait(slice.barrier);
        }
        if (!a.two_products) continue;

        const int64_t final_from = a.final_from(t);
        operand.set(a.h_full, a.ld_c, a.H);
        for_each_block(operand, r_panels, slice.b0, b1, r_back, [&](int64_t p, int64_t q, int64_t b, int64_t end) {
            const int vectors = r_shape.vectors(p);
            operand.multiply(b, end, w.second.at(p, q), products, vectors * W, false);
            second_rows(a, t, b, end, r_shape.first_column(p), vectors * W, products, vectors * W, next, final_from);
        });
        if (slice.barrier) barrier_wait(slice.barrier);
    }
}

// Backward: the gate gradients of step t from dh, then dh of the step before from them.
template <class Operand, class F, class S>
void backward_loop(const BackwardArgs<F, S>& a, int64_t t0, int64_t t1, const Slice& slice) {
    constexpr int W = Simd<F>::W;
    alignas(64) F products[Operand::kBlock * kMaxVectors * W];
    Operand operand;
    const PanelShape shape = shape_of(a.w_hh, 1), r_shape = shape_of(a.w_hr, 1);
    const bool by_rows = a.variant.layer_norm;
    const Range panels = share(shape.count(), slice.part, slice.parts);
    const Range h_panels = a.two_products ? share(r_shape.count(), slice.part, slice.parts) : Range{0, 0};
    const LoopWeights<Operand, F> w(a.w_hh, shape, panels, a.w_hr, r_shape, h_panels);
    // The columns of dh that this slice owns, the same in both halves of a step: no second barrier.
    const int64_t r0 = shape.first_column(panels.begin);
    const int64_t r1 = panels.end == shape.count() ? a.R : shape.first_column(panels.end);
    const bool passes_h = a.passes_h();
    bool back = false, h_back = false;

    for (int64_t step = t0; step < t1; ++step) {
        const int64_t t = a.reverse ? step : t0 + t1 - 1 - step;
        const int64_t b0 = slice.b0;
        const int64_t b1 = slice.b1 < a.seq.rows(t) ? slice.b1 : a.seq.rows(t);
        const int64_t chunk_row = a.seq.row(t) - a.dg_row;

        if (a.two_products) {
            output_gradient_rows(a, t, b0, b1, r0, r1);
            if (slice.barrier) barrier_wait(slice.barrier);
            operand.set(a.dr + chunk_row * a.ld_dr, a.ld_dr, a.R);
            for_each_block(operand, h_panels, b0, b1, h_back, [&](int64_t p, int64_t q, int64_t b, int64_t end) {
                const int vectors = r_shape.vectors(p);
                const int64_t u0 = r_shape.first_column(p);
                const int64_t u1 = u0 + vectors * W < a.H ? u0 + vectors * W : a.H;
                if (by_rows) {
                    F* to = a.dh_full + b * a.ld_c + u0;
                    return operand.multiply(b, end, w.second.at(p, q), to, a.ld_c, false);
                }
                operand.multiply(b, end, w.second.at(p, q), products, vectors * W, false);
                backward_rows(a, t, b, end, u0, u1, products, vectors * W, false);
            });
        } else if (!by_rows && r0 < r1 && b0 < b1) {
            backward_rows(a, t, b0, b1, r0, r1, a.dh + b0 * a.ld_dh + r0, a.ld_dh, a.dy != nullptr);
        }
        if (slice.barrier && (a.two_products || !by_rows)) barrier_wait(slice.barrier);
        if (by_rows) {
            const Range own = share_rows(slice, b1);
            const F* dh = a.two_products ? a.dh_full + own.begin * a.ld_c : a.dh + own.begin * a.ld_dh;
            if (own.begin < own.end)
                backward_rows(a, t, own.begin, own.end, 0, a.H, dh, a.two_products ? a.ld_c : a.ld_dh,
                              !a.two_products && a.dy);
            if (slice.barrier) barrier_wait(slice.barrier);
        }

        const F* dg = a.dgh + chunk_row * a.ld_dg;
        // Threads that share these rows take them all; one of them keeps them.
        bf16* const keep = a.narrowed && slice.part == 0 ? a.narrowed + chunk_row * a.ld_narrowed : nullptr;
        operand.set(dg, a.ld_dg, a.w_hh.K, keep);
        const Range sent = a.sends(t) ? panels : Range{panels.begin, panels.begin};
        for_each_block(operand, sent, b0, b1, back, [&](int64_t p, int64_t q, int64_t b, int64_t end) {
            const int vectors = shape.vectors(p);
            const int64_t at = shape.first_column(p) + b * a.ld_dh, width = vectors * W;
            if (!a.mask) {
                operand.multiply(b, end, w.first.at(p, q), a.dh + at, a.ld_dh, passes_h);
            } else {
                operand.multiply(b, end, w.first.at(p, q), products, width, false);
                mask_rows(products, width, a.mask + at, a.ld_dh, end - b, width, a.dh + at, a.ld_dh, passes_h);
            }
        });
        if (slice.barrier && (by_rows || a.variant.clips())) barrier_wait(slice.barrier);  // for the whole of a row
        if (!a.variant.clips()) continue;
        const Range own = share_rows(slice, b1);
        clip_rows(a, t, own.begin, own.end);
        if (slice.barrier) barrier_wait(slice.barrier);
    }
}
