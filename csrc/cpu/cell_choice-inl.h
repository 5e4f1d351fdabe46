// Kernels of rows for whatever cell a loop has. Included inside an ISA namespace.

// The one place where the cell is chosen; below it torch's are compile time, of variants the cell alone. NORMED: what an LSTM is
// that shows its cell normalised.
#define FUSED_RNN_BY_CELL(ARGS, CALL, NORMED)                                   \
    switch ((ARGS).variant.plain_units() ? (ARGS).cell : int64_t(kCellCount)) { \
        case kLstm:                                                             \
            if ((ARGS).variant.layer_norm)                                      \
                CALL((NORMED<Activations<S>::template Act, F>));                \
            else                                                                \
                CALL((LstmRows<Activations<S>::template Act, F>));              \
            break;                                                              \
        case kGru:                                                              \
            CALL((GruRows<Activations<S>::template Act, F>));                   \
            break;                                                              \
        case kRnnTanh:                                                          \
            CALL((RnnRows<Activations<S>::template Act, F>));                   \
            break;                                                              \
        case kRnnRelu:                                                          \
            CALL((RnnRows<Relu, F>));                                           \
            break;                                                              \
        default:                                                                \
            if (is_lstm((ARGS).cell) && (ARGS).variant.layer_norm)              \
                CALL((NORMED<Activations<S>::template Any, F>));                \
            else if (is_lstm((ARGS).cell))                                      \
                CALL((LstmRows<Activations<S>::template Any, F>));              \
            else if ((ARGS).variant.reset_before)                               \
                CALL((GruBeforeRows<Activations<S>::template Any, F>));         \
            else if (is_gru((ARGS).cell))                                       \
                CALL((GruRows<Activations<S>::template Any, F>));               \
            else                                                                \
                CALL((RnnRows<Activations<S>::template Any, F>));               \
    }
#define FUSED_RNN_UNWRAP(...) __VA_ARGS__

template <class F, class S>
void forward_rows(const ForwardArgs<F, S>& a, int64_t t, int64_t b0, int64_t b1, int64_t u0, int64_t u1, const F* hg,
                  int64_t row, int64_t gate_stride, int64_t unit_stride, int next) {
    if (a.variant.layer_norm) {  // these buffers are the loop's own
        F* const gx = const_cast<F*>(a.gx_at(t));
        for (int64_t b = b0; b < b1; ++b)
            normalise_products(a, a.seq.row(t) + b, gx + b * a.ld_gx, const_cast<F*>(hg) + (b - b0) * row);
    }
#define FUSED_RNN_CALL(C) \
    forward_block<FUSED_RNN_UNWRAP C>(a, t, b0, b1, u0, u1, hg, row, gate_stride, unit_stride, next)
    FUSED_RNN_BY_CELL(a, FUSED_RNN_CALL, NormedLstmRows)
#undef FUSED_RNN_CALL
}

template <class F, class S>
void rebuild_rows(const ForwardArgs<F, S>& a, int64_t n0, int64_t n1, const F* hg) {
    if (a.variant.layer_norm) {
        const int64_t row = gates_of(a.cell, a.variant) * a.H;
        for (int64_t n = n0; n < n1; ++n)
            normalise_products(a, n, const_cast<F*>(a.gx) + (n - a.gx_row) * a.ld_gx,
                               const_cast<F*>(hg) + (n - n0) * row);
    }
#define FUSED_RNN_CALL(C) rebuild_block<FUSED_RNN_UNWRAP C>(a, n0, n1, hg)
    FUSED_RNN_BY_CELL(a, FUSED_RNN_CALL, LstmRows)  // whose gates are the same
#undef FUSED_RNN_CALL
}

template <class F, class S>
void backward_rows(const BackwardArgs<F, S>& a, int64_t t, int64_t b0, int64_t b1, int64_t u0, int64_t u1, const F* dh,
                   int64_t row, bool add_dy) {
#define FUSED_RNN_CALL(C) backward_block<FUSED_RNN_UNWRAP C, false>(a, t, b0, b1, u0, u1, dh, row, add_dy)
#define FUSED_RNN_TELLING_CALL(C) backward_block<FUSED_RNN_UNWRAP C, true>(a, t, b0, b1, u0, u1, dh, row, add_dy)
    if (a.squares) {
        FUSED_RNN_BY_CELL(a, FUSED_RNN_TELLING_CALL, NormedLstmRows)
    } else {
        FUSED_RNN_BY_CELL(a, FUSED_RNN_CALL, NormedLstmRows)
    }
#undef FUSED_RNN_TELLING_CALL
#undef FUSED_RNN_CALL
    if (a.variant.layer_norm)
        for (int64_t b = b0; b < b1; ++b) normalise_products_grad(a, b, a.seq.row(t) + b);
}
#undef FUSED_RNN_UNWRAP
#undef FUSED_RNN_BY_CELL
