// The cells, a vector of units of a row at a time: loads, the step of core/cells.h, stores. Included inside an ISA namespace.

template <template <class> class ActT, class F>
struct LstmRows {
    using V = Vec<F>;
    using Act = ActT<F>;
    using Scalar = F;
    static constexpr bool kHasCell = true;
    static constexpr bool kVaries = !__is_empty(Act);

    template <class S, class Kept>
    static FUSED_RNN_INLINE V forward(const ForwardArgs<F, S>& a, int64_t b, int64_t n, int64_t u, int lanes,
                                      const F* gx, const F* hg, int64_t gate_stride, const F* h_prev,
                                      const Kept& kept) {
        const LstmStep<V> s = advance(a, b, n, u, lanes, gx, hg, gate_stride, kept);
        return kept.of_h ? kept.h(load<F>(h_prev + b * a.ld_h + u, lanes), s.h) : s.h;
    }

    // All but showing h.
    template <class S, class Kept>
    static FUSED_RNN_INLINE LstmStep<V> advance(const ForwardArgs<F, S>& a, int64_t b, int64_t n, int64_t u, int lanes,
                                                const F* gx, const F* hg, int64_t gate_stride, const Kept& kept) {
        F* to = a.c + b * a.ld_c + u;
        const V c_prev = load<F>(to, lanes);
        const LstmStep<V> s = step(a, u, lanes, gx, hg, gate_stride, c_prev);
        const V c = kept.c(c_prev, s.c);
        store(to, c, lanes);
        if (a.saved.gates) keep_gates(a, n, u, lanes, s);
        if (a.saved.states) store(a.saved.state_of(n) + u, c, lanes);
        return s;
    }

    // Without peepholes the gates do not look at c, and what follows from it is not computed.
    template <class S>
    static FUSED_RNN_INLINE void rebuild(const ForwardArgs<F, S>& a, int64_t n, int64_t u, int lanes, const F* gx,
                                         const F* hg, int64_t gate_stride) {
        const V c = kVaries && a.w_ch ? load<F>(a.c + (n - a.gx_row) * a.ld_c + u, lanes) : V{};
        keep_gates(a, n, u, lanes, step(a, u, lanes, gx, hg, gate_stride, c));
    }

    template <class S, class Kept>
    static FUSED_RNN_INLINE V backward(const BackwardArgs<F, S>& a, int64_t b, int64_t n, const F* began,
                                       int64_t n_before, int64_t u, int lanes, V dh, const Kept& kept) {
        const Act act = act_of<Act>(a);
        const V tc = act.state(cell(a, n, began, n_before, u, lanes, kept)), to_new = kept.to_new_h(dh);
        const V o = load<F>(a.saved.gates_of(n) + of_f(a) + 2 * a.H + u, lanes);
        const V d_o = act.gate_grad(o, to_new * tc), from_h = act.state_grad(tc, to_new * o);
        V dc;
        if constexpr (kVaries) {
            dc = retreat_apart(a, b, n, began, n_before, u, lanes, d_o, from_h, kept);
        } else {
            dc = retreat(a, b, n, began, n_before, u, lanes, d_o, from_h, kept);
        }
        if (kept.of_h) store(a.dh + b * a.ld_dh + u, kept.to_old_h(dh), lanes);
        return dc;
    }

    // c as o saw it, which zoneout may have thrown away.
    template <class S, class Kept>
    static FUSED_RNN_INLINE V cell(const BackwardArgs<F, S>& a, int64_t n, const F* began, int64_t n_before, int64_t u,
                                   int lanes, const Kept& kept) {
        return kept.of_c ? candidate(a, n, began, n_before, u, lanes) : load<F>(a.saved.state_of(n) + u, lanes);
    }
    template <class S>
    static FUSED_RNN_INLINE V candidate(const BackwardArgs<F, S>& a, int64_t n, const F* began, int64_t n_before,
                                        int64_t u, int lanes) {
        const S* s = a.saved.gates_of(n) + u;
        const V forget = load<F>(s + of_f(a), lanes), g = load<F>(s + of_f(a) + a.H, lanes);
        return forget * state_before(a, began, n_before, u, lanes) + input(a, s, forget, lanes) * g;
    }

    // From d_o, and what came to c' from h; the whole gradient of c'.
    template <class S, class Kept>
    static FUSED_RNN_INLINE V retreat(const BackwardArgs<F, S>& a, int64_t b, int64_t n, const F* began,
                                      int64_t n_before, int64_t u, int lanes, V d_o, V from_h, const Kept& kept) {
        const int64_t f = of_f(a), H = a.H;
        const S* s = a.saved.gates_of(n) + u;
        const V forget = load<F>(s + f, lanes), g = load<F>(s + f + H, lanes);
        F* carried = a.dc + b * a.ld_c + u;
        const V dc = load<F>(carried, lanes);
        const LstmGrad<V> d = lstm_cell_grad<Act, V>(input(a, s, forget, lanes), forget, g, d_o,
                                                     state_before(a, began, n_before, u, lanes),
                                                     kept.to_new_c(dc) + from_h, act_of<Act>(a), ties(a, u, lanes));
        store(carried, kept.of_c ? d.c_prev + kept.to_old_c(dc) : d.c_prev, lanes);
        F* to = a.dgx + (n - a.dg_row) * a.ld_dg + u;
        if (!coupled(a)) store(to, d.i, lanes);
        store(to + f, d.f, lanes);
        store(to + f + H, d.g, lanes);
        store(to + f + 2 * H, d.o, lanes);
        return d.c;
    }
    // Once for all that vary.
    template <class S, class Kept>
    static FUSED_RNN_OUTLINE V retreat_apart(const BackwardArgs<F, S>& a, int64_t b, int64_t n, const F* began,
                                             int64_t n_before, int64_t u, int lanes, V d_o, V from_h,
                                             const Kept& kept) {
        return retreat(a, b, n, began, n_before, u, lanes, d_o, from_h, kept);
    }

  private:
    // Without gates of i, those of f, g, o come first.
    template <class Args>
    static FUSED_RNN_INLINE bool coupled(const Args& a) {
        return kVaries && a.variant.coupled;
    }
    template <class S>
    static FUSED_RNN_INLINE V input(const BackwardArgs<F, S>& a, const S* gates, V forget, int lanes) {
        return coupled(a) ? Act::complement(forget) : load<F>(gates, lanes);
    }
    // Where the block of f begins.
    template <class Args>
    static FUSED_RNN_INLINE int64_t of_f(const Args& a) {
        return coupled(a) ? 0 : a.H;
    }

    template <class Args>
    static FUSED_RNN_INLINE auto ties([[maybe_unused]] const Args& a, [[maybe_unused]] int64_t u,
                                      [[maybe_unused]] int lanes) {
        if constexpr (kVaries) {
            const auto weight = [&](int64_t at) { return a.w_ch ? load<F>(a.w_ch + at + u, lanes) : V{}; };
            const int64_t f = of_f(a);
            return Ties<V>{a.w_ch != nullptr, coupled(a), coupled(a) ? V{} : weight(0), weight(f), weight(f + a.H)};
        } else {
            return Untied<V>{};
        }
    }

    template <class S>
    static FUSED_RNN_INLINE LstmStep<V> step(const ForwardArgs<F, S>& a, int64_t u, int lanes, const F* gx, const F* hg,
                                             int64_t gate_stride, V c_prev) {
        const int64_t H = a.H;
        const F* bias = a.bias + u;
        const int none = coupled(a);  // of i
        V x[4] = {};
        for (int g = none; g < 4; ++g) {
            const int at = g - none;
            x[g] = load<F>(gx + at * H, lanes) + load<F>(bias + at * H, lanes) + load<F>(hg + at * gate_stride, lanes);
        }
        return lstm_step<Act, V>(x[0], x[1], x[2], x[3], c_prev, act_of<Act>(a), ties(a, u, lanes));
    }

    template <class S>
    static FUSED_RNN_INLINE void keep_gates(const ForwardArgs<F, S>& a, int64_t n, int64_t u, int lanes,
                                            const LstmStep<V>& s) {
        const int64_t f = of_f(a), H = a.H;
        S* to = a.saved.gates_of(n) + u;
        if (!coupled(a)) store(to, s.i, lanes);
        store(to + f, s.f, lanes);
        store(to + f + H, s.g, lanes);
        store(to + f + 2 * H, s.o, lanes);
    }
};

template <template <class> class ActT, class F>
struct GruRows {
    using V = Vec<F>;
    using Act = ActT<F>;
    using Scalar = F;
    static constexpr bool kVaries = !__is_empty(Act);
    static constexpr bool kHasCell = false;

    template <class S, class Kept>
    static FUSED_RNN_INLINE V forward(const ForwardArgs<F, S>& a, int64_t b, int64_t n, int64_t u, int lanes,
                                      const F* gx, const F* hg, int64_t gate_stride, const F* h_before,
                                      const Kept& kept) {
        const V hn = hidden(a, u, lanes, hg, gate_stride), h_prev = load<F>(h_before + b * a.ld_h + u, lanes);
        const GruStep<V> s = step(a, u, lanes, gx, hg, gate_stride, hn, h_prev);
        const V h = kept.h(h_prev, s.h);
        if (a.saved.gates) keep_gates(a, n, u, lanes, s, hn);
        return h;
    }

    // The gates look at h through the products alone, and the new h is not computed.
    template <class S>
    static FUSED_RNN_INLINE void rebuild(const ForwardArgs<F, S>& a, int64_t n, int64_t u, int lanes, const F* gx,
                                         const F* hg, int64_t gate_stride) {
        const V hn = hidden(a, u, lanes, hg, gate_stride);
        keep_gates(a, n, u, lanes, step(a, u, lanes, gx, hg, gate_stride, hn, V{}), hn);
    }

    template <class S, class Kept>
    static FUSED_RNN_INLINE V backward(const BackwardArgs<F, S>& a, int64_t b, int64_t n, const F* began,
                                       int64_t n_before, int64_t u, int lanes, V dh, const Kept& kept) {
        const int64_t H = a.H;
        const S* s = a.saved.gates_of(n) + u;
        const V h_prev = state_before(a, began, n_before, u, lanes);
        const GruGrad<V> d =
            gru_step_grad<Act, V>(load<F>(s, lanes), load<F>(s + H, lanes), load<F>(s + 2 * H, lanes),
                                  load<F>(s + 3 * H, lanes), h_prev, kept.to_new_h(dh), act_of<Act>(a));
        // the product with W_hh is added to it
        store(a.dh + b * a.ld_dh + u, kept.of_h ? d.h_prev + kept.to_old_h(dh) : d.h_prev, lanes);
        F* to = a.dgx + (n - a.dg_row) * a.ld_dg + u;
        store(to, d.r, lanes);
        store(to + H, d.z, lanes);
        store(to + 2 * H, d.n, lanes);
        F* hidden = a.dgh + (n - a.dg_row) * a.ld_dg + u;
        store(hidden, d.r, lanes);
        store(hidden + H, d.z, lanes);
        store(hidden + 2 * H, d.hn, lanes);
        return V{};
    }

  private:
    // W_hn h + b_hn
    template <class S>
    static FUSED_RNN_INLINE V hidden(const ForwardArgs<F, S>& a, int64_t u, int lanes, const F* hg,
                                     int64_t gate_stride) {
        return load<F>(hg + 2 * gate_stride, lanes) + load<F>(a.bias_hn + u, lanes);
    }

    template <class S>
    static FUSED_RNN_INLINE GruStep<V> step(const ForwardArgs<F, S>& a, int64_t u, int lanes, const F* gx, const F* hg,
                                            int64_t gate_stride, V hn, V h_prev) {
        const int64_t H = a.H;
        const F* bias = a.bias + u;
        V x[3];
        for (int g = 0; g < 3; ++g) x[g] = load<F>(gx + g * H, lanes) + load<F>(bias + g * H, lanes);
        return gru_step<Act, V>(x[0] + load<F>(hg, lanes), x[1] + load<F>(hg + gate_stride, lanes), x[2], hn, h_prev,
                                act_of<Act>(a));
    }

    template <class S>
    static FUSED_RNN_INLINE void keep_gates(const ForwardArgs<F, S>& a, int64_t n, int64_t u, int lanes,
                                            const GruStep<V>& s, V hn) {
        const int64_t H = a.H;
        S* to = a.saved.gates_of(n) + u;
        store(to, s.r, lanes);
        store(to + H, s.z, lanes);
        store(to + 2 * H, s.n, lanes);
        store(to + 3 * H, hn, lanes);
    }
};

template <template <class> class ActT, class F>
struct RnnRows {
    using V = Vec<F>;
    using Act = ActT<F>;
    using Scalar = F;
    static constexpr bool kVaries = !__is_empty(Act);
    static constexpr bool kHasCell = false;

    template <class S, class Kept>
    static FUSED_RNN_INLINE V forward(const ForwardArgs<F, S>& a, int64_t b, int64_t n, int64_t u, int lanes,
                                      const F* gx, const F* hg, int64_t, const F* h_prev, const Kept& kept) {
        const V fresh = step(a, u, lanes, gx, hg);
        const V h = kept.of_h ? kept.h(load<F>(h_prev + b * a.ld_h + u, lanes), fresh) : fresh;
        if (kept.of_h && a.saved.gates) store(a.saved.gates_of(n) + u, fresh, lanes);
        return h;
    }

    // With zoneout only: else the slope is taken from h.
    template <class S>
    static FUSED_RNN_INLINE void rebuild(const ForwardArgs<F, S>& a, int64_t n, int64_t u, int lanes, const F* gx,
                                         const F* hg, int64_t) {
        if constexpr (kVaries)
            if (a.variant.zoneout_h > 0) store(a.saved.gates_of(n) + u, step(a, u, lanes, gx, hg), lanes);
    }

    template <class S, class Kept>
    static FUSED_RNN_INLINE V backward(const BackwardArgs<F, S>& a, int64_t b, int64_t n, const F*, int64_t, int64_t u,
                                       int lanes, V dh, const Kept& kept) {
        const V fresh = load<F>((kept.of_h ? a.saved.gates_of(n) : a.saved.state_of(n)) + u, lanes);
        const V d = rnn_step_grad<Act, V>(fresh, kept.to_new_h(dh), act_of<Act>(a));
        store(a.dgx + (n - a.dg_row) * a.ld_dg + u, d, lanes);
        if (kept.of_h) store(a.dh + b * a.ld_dh + u, kept.to_old_h(dh), lanes);
        return V{};
    }

  private:
    template <class S>
    static FUSED_RNN_INLINE V step(const ForwardArgs<F, S>& a, int64_t u, int lanes, const F* gx, const F* hg) {
        const V x = load<F>(gx, lanes) + load<F>(a.bias + u, lanes);
        return rnn_step<Act, V>(x + load<F>(hg, lanes), act_of<Act>(a));
    }
};
