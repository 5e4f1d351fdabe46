// What core/cells.h takes for its activations: values, and gradients from outputs. Included inside an ISA namespace.

template <class F>
struct Standard {
    using V = Vec<F>;
    using Scalar = F;
    static FUSED_RNN_INLINE V gate(V x) { return sigmoid<F>(x); }
    static FUSED_RNN_INLINE V state(V x) { return hyperbolic_tangent<F>(x); }
    static FUSED_RNN_INLINE V complement(V z) { return F(1) - z; }
    static FUSED_RNN_INLINE V gate_grad(V s, V ds) { return ds * (s * (F(1) - s)); }
    static FUSED_RNN_INLINE V state_grad(V t, V dt) { return dt * (F(1) - t * t); }
};

template <class F>
struct Relu {
    using V = Vec<F>;
    static FUSED_RNN_INLINE V state(V x) { return x < F(0) ? V{} : x; }  // NaN stays NaN
    // Chosen, not multiplied: no gradient, not even NaN, passes a unit at rest.
    static FUSED_RNN_INLINE V state_grad(V h, V dh) { return h <= F(0) ? V{} : dh; }
};

// Standard for values that are stored in 16 bits anyway: within 2^-18 of the exact (of bf16's half unit 2^-9, of f16's
// 2^-12), in half the time. NaN stays NaN.
#if FUSED_RNN_VECTOR_BYTES == 64
struct Narrow : Standard<float> {
    // x scaled by `log2` = n + f, |f| <= 1/2; gives 2^f - 1 (relative error 2^-20) and 2^n.
    static FUSED_RNN_INLINE V split_power(V x, float log2, V& power) {
        const V shifted = multiply_add(x, splat<V>(log2), splat<V>(Lanes<float>::round_magic));
        const V n = shifted - Lanes<float>::round_magic;
        const V f = multiply_add(x, splat<V>(log2), -n);
        power = power_of_two<float>(shifted, n);
        V q = splat<V>(1.339086735e-3f);  // interpolates (2^f - 1) / f at Chebyshev points
        q = multiply_add(q, f, splat<V>(9.666373693e-3f));
        q = multiply_add(q, f, splat<V>(5.550357104e-2f));
        q = multiply_add(q, f, splat<V>(2.402234895e-1f));
        q = multiply_add(q, f, splat<V>(6.931471880e-1f));
        return q * f;
    }
    // 14 bits and a Newton step.
    static FUSED_RNN_INLINE V reciprocal(V b) {
        const V y = bits_as<V>(_mm512_maskz_rcp14_ps(0xffff, bits_as<__m512>(b)));
        return multiply_add(y, multiply_add(-b, y, splat<V>(1.f)), y);
    }
    static FUSED_RNN_INLINE V gate(V x) {
        V power;
        const V em1 = split_power(clamp(x, -88.f, 88.f), -1.44269504f, power);
        const V s = reciprocal(multiply_add(power, em1, power + 1.f));
        return x < -88.f ? V{} : s;  // 0, or a product with an infinite value would not be NaN
    }
    static FUSED_RNN_INLINE V state(V x) {
        V power;
        const V part = split_power(clamp(x, -20.f, 20.f), 2.88539008f, power);
        const V m = multiply_add(power, part, power - 1.f);  // expm1(2x)
        return m * reciprocal(m + 2.f);
    }
};
#endif

// Any activation, chosen anew for each vector: a branch that is taken the same way every time. Base has the standard pair.
// Not inlined, or each call would bring all of them along.
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

// What a storage type is computed with; Any where a variant chooses.
template <class S>
struct Activations {
    template <class F>
    using Act = Standard<F>;
    template <class F>
    using Any = Chosen<Act<F>>;
};
#if FUSED_RNN_VECTOR_BYTES == 64
template <>
struct Activations<bf16> {
    template <class F>
    using Act = Narrow;
    template <class F>
    using Any = Chosen<Narrow>;
};
template <>
struct Activations<f16> : Activations<bf16> {};
#endif

// The activations of a time loop, or of what else has a variant: for most a type without members.
template <class Act, class Args>
FUSED_RNN_INLINE Act act_of([[maybe_unused]] const Args& a) {
    if constexpr (__is_empty(Act)) {
        return {};
    } else {
        return {a.variant.gate, a.variant.state};
    }
}
