// The math of one time step, forward and backward: values in, small structs out. Written once for
// every machine: V is a SIMD vector on the CPU and can be a scalar elsewhere. Included inside the
// namespace of each instruction set, so that no two of them share a symbol; hence no include guard
// beyond what that namespace needs, and no std here.
//
// Act supplies gate(V) and state(V) with their derivatives from outputs, gate_slope and state_slope;
// state_grad(h, dh) is dh times the slope, where a ReLU chooses instead.
// Derivations: Gers et al. 2000 (LSTM with forget gate), Cho et al. 2014 with the reset gate after
// the product as torch and cuDNN have it (GRU), Elman 1990 (RNN), Sak et al. 2014 (projection).

template <class V>
struct LstmStep {
    V i, f, g, o, c, h;
};

template <class V>
struct LstmGrad {
    V i, f, g, o, c_prev;
};

// c' = f c + i g,  h' = o tanh(c')
template <class Act, class V>
FUSED_RNN_INLINE LstmStep<V> lstm_step(V i, V f, V g, V o, V c_prev) {
    LstmStep<V> s;
    s.i = Act::gate(i);
    s.f = Act::gate(f);
    s.g = Act::state(g);
    s.o = Act::gate(o);
    s.c = s.f * c_prev + s.i * s.g;
    s.h = s.o * Act::state(s.c);
    return s;
}

// From the activated gates, c' and c; dc is the gradient of c' that comes from later steps.
template <class Act, class V>
FUSED_RNN_INLINE LstmGrad<V> lstm_step_grad(V i, V f, V g, V o, V c, V c_prev, V dh, V dc) {
    const V tc = Act::state(c);
    const V dct = dc + dh * o * Act::state_slope(tc);
    LstmGrad<V> d;
    d.o = dh * tc * Act::gate_slope(o);
    d.i = dct * g * Act::gate_slope(i);
    d.f = dct * c_prev * Act::gate_slope(f);
    d.g = dct * i * Act::state_slope(g);
    d.c_prev = dct * f;
    return d;
}

template <class V>
struct GruStep {
    V r, z, n, h;
};

template <class V>
struct GruGrad {
    V r, z, n, hn, h_prev;
};

// n = tanh(xn + r hn),  h' = (1 - z) n + z h, with hn = W_hn h + b_hn
template <class Act, class V>
FUSED_RNN_INLINE GruStep<V> gru_step(V r, V z, V xn, V hn, V h_prev) {
    GruStep<V> s;
    s.r = Act::gate(r);
    s.z = Act::gate(z);
    s.n = Act::state(xn + s.r * hn);
    s.h = s.n + s.z * (h_prev - s.n);
    return s;
}

// hn is what multiplied r; d.hn its gradient; d.h_prev only the part that passes by the gate z.
template <class Act, class V>
FUSED_RNN_INLINE GruGrad<V> gru_step_grad(V r, V z, V n, V hn, V h_prev, V dh) {
    GruGrad<V> d;
    d.h_prev = dh * z;
    d.n = dh * Act::complement(z) * Act::state_slope(n);
    d.z = dh * (h_prev - n) * Act::gate_slope(z);
    d.r = d.n * hn * Act::gate_slope(r);
    d.hn = d.n * r;
    return d;
}

// h' = act(x); the slope is taken from h'.
template <class Act, class V>
FUSED_RNN_INLINE V rnn_step(V x) {
    return Act::state(x);
}

template <class Act, class V>
FUSED_RNN_INLINE V rnn_step_grad(V h, V dh) {
    return Act::state_grad(h, dh);
}
