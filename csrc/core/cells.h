// The math of one time step, forward and backward: values in, small structs out. Written once for
// every machine: V is a SIMD vector on the CPU and can be a scalar elsewhere. Included inside the
// namespace of each instruction set, so that no two of them share a symbol; hence no include guard
// beyond what that namespace needs, and no std here.
//
// Act supplies gate(V) and state(V); gate_grad(s, ds) and state_grad(t, dt) are ds and dt times their derivatives, taken
// from the outputs s and t, where a ReLU chooses instead.
// Derivations: Gers et al. 2000 (LSTM with forget gate), Gers and Schmidhuber 2000 (peepholes), Greff et al. 2017
// (coupled gates), Cho et al. 2014, and the same with the reset gate after the product, as torch and cuDNN have it (GRU),
// Elman 1990 (RNN), Sak et al. 2014 (projection).

template <class V>
struct LstmStep {
    V i, f, g, o, c, h;
};

template <class V>
struct LstmGrad {
    V i, f, g, o, c, c_prev;
};

// What ties the gates of an LSTM to the cell and to each other: in torch's nothing,
template <class V>
struct Untied {
    static constexpr bool coupled = false;
    FUSED_RNN_INLINE V into_i(V x, V) const { return x; }
    FUSED_RNN_INLINE V into_f(V x, V) const { return x; }
    FUSED_RNN_INLINE V into_o(V x, V) const { return x; }
    FUSED_RNN_INLINE V from_o(V dc, V) const { return dc; }
    FUSED_RNN_INLINE V from_i_and_f(V dc, V, V) const { return dc; }
};

// or peepholes: i and f see c, o sees c', each through one weight a unit. Coupled: i = 1 - f.
template <class V>
struct Ties {
    bool peepholes, coupled;
    V i, f, o;
    FUSED_RNN_INLINE V into_i(V x, V c) const { return peepholes ? x + i * c : x; }
    FUSED_RNN_INLINE V into_f(V x, V c) const { return peepholes ? x + f * c : x; }
    FUSED_RNN_INLINE V into_o(V x, V c) const { return peepholes ? x + o * c : x; }
    FUSED_RNN_INLINE V from_o(V dc, V d_o) const { return peepholes ? dc + d_o * o : dc; }
    FUSED_RNN_INLINE V from_i_and_f(V dc, V d_i, V d_f) const { return peepholes ? dc + d_i * i + d_f * f : dc; }
};

// How much of its old state a unit keeps in a step: in torch's cells nothing,
template <class V>
struct AllNew {
    static constexpr bool of_h = false, of_c = false;
    FUSED_RNN_INLINE V h(V, V fresh) const { return fresh; }
    FUSED_RNN_INLINE V c(V, V fresh) const { return fresh; }
    FUSED_RNN_INLINE V to_old_h(V) const { return V{}; }
    FUSED_RNN_INLINE V to_new_h(V dh) const { return dh; }
    FUSED_RNN_INLINE V to_old_c(V) const { return V{}; }
    FUSED_RNN_INLINE V to_new_c(V dc) const { return dc; }
};

// or with zoneout (Krueger et al. 2017) the shares old_h and old_c, new_h and new_c being the rest. What has no share is not
// looked at, and gets no gradient: neither NaN nor infinity comes through.
template <class V>
struct Zoneout {
    bool of_h, of_c;
    V old_h, new_h, old_c, new_c;
    FUSED_RNN_INLINE V h(V old, V fresh) const { return of_h ? mixed(old_h, old, new_h, fresh) : fresh; }
    FUSED_RNN_INLINE V c(V old, V fresh) const { return of_c ? mixed(old_c, old, new_c, fresh) : fresh; }
    FUSED_RNN_INLINE V to_old_h(V dh) const { return of_h ? part(old_h, dh) : V{}; }
    FUSED_RNN_INLINE V to_new_h(V dh) const { return of_h ? part(new_h, dh) : dh; }
    FUSED_RNN_INLINE V to_old_c(V dc) const { return of_c ? part(old_c, dc) : V{}; }
    FUSED_RNN_INLINE V to_new_c(V dc) const { return of_c ? part(new_c, dc) : dc; }

  private:
    static FUSED_RNN_INLINE V part(V share, V x) { return share == V{} ? V{} : share * x; }
    static FUSED_RNN_INLINE V mixed(V k, V x, V l, V y) { return part(k, x) + part(l, y); }
};

// c' = f c + i g,  h' = o tanh(c')
template <class Act, class V, class Tie = Untied<V>>
FUSED_RNN_INLINE LstmStep<V> lstm_step(V i, V f, V g, V o, V c_prev, const Act& act = {}, const Tie& ties = {}) {
    LstmStep<V> s;
    s.f = act.gate(ties.into_f(f, c_prev));
    s.i = ties.coupled ? act.complement(s.f) : act.gate(ties.into_i(i, c_prev));
    s.g = act.state(g);
    s.c = s.f * c_prev + s.i * s.g;
    s.o = act.gate(ties.into_o(o, s.c));
    s.h = s.o * act.state(s.c);
    return s;
}

// From the activated gates, c, what came to o, and dc, what came to c' past the gate o; d.c is the whole gradient of c'.
template <class Act, class V, class Tie = Untied<V>>
FUSED_RNN_INLINE LstmGrad<V> lstm_cell_grad(V i, V f, V g, V d_o, V c_prev, V dc, const Act& act = {},
                                            const Tie& ties = {}) {
    LstmGrad<V> d;
    d.o = d_o;
    d.c = ties.from_o(dc, d_o);
    d.i = ties.coupled ? V{} : act.gate_grad(i, d.c * g);
    d.f = act.gate_grad(f, d.c * (ties.coupled ? c_prev - g : c_prev));
    d.g = act.state_grad(g, d.c * i);
    d.c_prev = ties.from_i_and_f(d.c * f, d.i, d.f);
    return d;
}

// From c' too; dc is the gradient of c' that comes from later steps.
template <class Act, class V, class Tie = Untied<V>>
FUSED_RNN_INLINE LstmGrad<V> lstm_step_grad(V i, V f, V g, V o, V c, V c_prev, V dh, V dc, const Act& act = {},
                                            const Tie& ties = {}) {
    const V tc = act.state(c);
    const V d_o = act.gate_grad(o, dh * tc);
    return lstm_cell_grad<Act, V>(i, f, g, d_o, c_prev, dc + act.state_grad(tc, dh * o), act, ties);
}

template <class V>
struct GruStep {
    V r, z, n, h;
};

template <class V>
struct GruGrad {
    V r, z, n, hn, h_prev;
};

// h' = (1 - z) n + z h
template <class V>
FUSED_RNN_INLINE V gru_update(V z, V n, V h_prev) {
    return n + z * (h_prev - n);
}

// The gradients of that; d.h_prev is only the part that passes by the gate z.
template <class Act, class V>
FUSED_RNN_INLINE GruGrad<V> gru_update_grad(V z, V n, V h_prev, V dh, const Act& act = {}) {
    GruGrad<V> d;
    d.h_prev = dh * z;
    d.n = act.state_grad(n, dh * act.complement(z));
    d.z = act.gate_grad(z, dh * (h_prev - n));
    return d;
}

// n = tanh(xn + r hn), with hn = W_hn h + b_hn
template <class Act, class V>
FUSED_RNN_INLINE GruStep<V> gru_step(V r, V z, V xn, V hn, V h_prev, const Act& act = {}) {
    GruStep<V> s;
    s.r = act.gate(r);
    s.z = act.gate(z);
    s.n = act.state(xn + s.r * hn);
    s.h = gru_update(s.z, s.n, h_prev);
    return s;
}

// hn is what multiplied r; d.hn its gradient.
template <class Act, class V>
FUSED_RNN_INLINE GruGrad<V> gru_step_grad(V r, V z, V n, V hn, V h_prev, V dh, const Act& act = {}) {
    GruGrad<V> d = gru_update_grad<Act, V>(z, n, h_prev, dh, act);
    d.r = act.gate_grad(r, d.n * hn);
    d.hn = d.n * r;
    return d;
}

// h' = act(x); the slope is taken from h'.
template <class Act, class V>
FUSED_RNN_INLINE V rnn_step(V x, const Act& act = {}) {
    return act.state(x);
}

template <class Act, class V>
FUSED_RNN_INLINE V rnn_step_grad(V h, V dh, const Act& act = {}) {
    return act.state_grad(h, dh);
}
