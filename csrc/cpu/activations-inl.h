// What core/cells.h takes for its activations: values, and gradients from outputs; those beside the standard pair are in
// core/activations.h. Included inside an ISA namespace.

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

// Standard for values that are stored in 16 bits anyway: within 2^-18 of the exact (of bf16's half unit 2^-9, of f16's
// 2^-12), in half the time. NaN stays NaN.
#if FUSED_RNN_VECTOR_BYTES == 64
struct Narrow : Standard<float> {
    // x scaled by `log2` = n + f, |f| <= 1/2; gives 2^f - 1 (relative error 2^-20) and 2^n.
    static FUSED_RNN_INLINE V split_power(V x, float log2, V& power) {
        const V shifted = multiply_add(x, splat<V>(log2), splat<V>(Lanes<float>::round_magic));
        const V n = shifted - Lanes<float>::round_magic;
        const V f = multiply_add(x, splat<V>(log2), -n);
        power = power_of_two<float>(shifted);
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
