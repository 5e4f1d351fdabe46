// Activations that core/cells.h takes, beside the standard pair: values, and gradients from outputs. Included inside the
// namespace of each instruction set, as cells.h, which has Vec<F>, what a V is of scalars F, and clamp(V, F, F), which keeps NaN.

template <class F>
struct Relu {
    using V = Vec<F>;
    static FUSED_RNN_INLINE V state(V x) { return x < F(0) ? V{} : x; }  // NaN stays NaN
    // Chosen, not multiplied: no gradient, not even NaN, passes a unit at rest.
    static FUSED_RNN_INLINE V state_grad(V h, V dh) { return h <= F(0) ? V{} : dh; }
};

// Any activation, chosen anew for each V: a branch that is taken the same way every time. Base has the standard pair, F is
// its Scalar. Not inlined on the CPU, or each call would bring all of them along.
template <class Base>
struct Chosen {
    using V = typename Base::V;
    using F = typename Base::Scalar;
    Activation of_gates, of_states;

    FUSED_RNN_INLINE V gate(V x) const { return activate(of_gates, x); }
    FUSED_RNN_INLINE V state(V x) const { return activate(of_states, x); }
    FUSED_RNN_INLINE V gate_grad(V y, V dy) const { return gradient(of_gates, y, dy); }
    FUSED_RNN_INLINE V state_grad(V y, V dy) const { return gradient(of_states, y, dy); }
    static FUSED_RNN_INLINE V complement(V z) { return Base::complement(z); }

  private:
    static FUSED_RNN_INLINE V magnitude(V x) { return x < F(0) ? -x : x; }

    static FUSED_RNN_OUTLINE V activate(Activation activation, V x) {
        switch (activation) {
            case Activation::kSigmoid:
                return Base::gate(x);
            case Activation::kHardSigmoid:
                return clamp(x * F(1.0 / 6) + F(0.5), F(0), F(1));
            case Activation::kTanh:
                return Base::state(x);
            case Activation::kHardTanh:
                return clamp(x, F(-1), F(1));
            case Activation::kRelu:
                return Relu<F>::state(x);
            case Activation::kSoftsign:
                return x / (F(1) + magnitude(x));
            default:
                return x;
        }
    }

    // From the output. Where a piece is flat the gradient is chosen, not multiplied, as in Relu.
    static FUSED_RNN_OUTLINE V gradient(Activation activation, V y, V dy) {
        switch (activation) {
            case Activation::kSigmoid:
                return Base::gate_grad(y, dy);
            case Activation::kHardSigmoid:
                return (y <= F(0)) | (y >= F(1)) ? V{} : dy * F(1.0 / 6);
            case Activation::kTanh:
                return Base::state_grad(y, dy);
            case Activation::kHardTanh:
                return (y <= F(-1)) | (y >= F(1)) ? V{} : dy;
            case Activation::kRelu:
                return Relu<F>::state_grad(y, dy);
            case Activation::kSoftsign: {
                const V left = F(1) - magnitude(y);
                return dy * (left * left);
            }
            default:
                return dy;
        }
    }
};

// The activations of a time loop, or of what else has a variant: for most a type without members.
template <class Act, class Args>
FUSED_RNN_INLINE Act act_of([[maybe_unused]] const Args& a) {
    if constexpr (__is_empty(Act)) {
        return {};
    } else {
        return {a.variant.gate, a.variant.state};
    }
}
