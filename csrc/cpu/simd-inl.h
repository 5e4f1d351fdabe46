// Vectors of FUSED_RNN_VECTOR_BYTES bytes through the compiler's vector extension: one source for
// SSE2, NEON, AVX2 and AVX-512. Intrinsics only where the extension has no word for it: masked
// access, f16 conversion, approximate reciprocal. Included inside an ISA namespace.

template <class F>
struct Lanes;
template <>
struct Lanes<float> {
    using Int = int32_t;
    static constexpr int mantissa = 23;
    static constexpr float round_magic = 12582912.0f + 127;  // 1.5 * 2^23: adding it rounds to an integer; and the bias
    static constexpr float ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f;
    static constexpr float exp_low = -87.0f, exp_high = 88.0f;
};
template <>
struct Lanes<double> {
    using Int = int64_t;
    static constexpr int mantissa = 52;
    static constexpr double round_magic = 6755399441055744.0 + 1023;  // 1.5 * 2^52
    static constexpr double ln2_hi = 6.93147180369123816490e-01, ln2_lo = 1.90821492927058770002e-10;
    static constexpr double exp_low = -708.0, exp_high = 709.0;
};

template <class F>
struct Simd {
    typedef F V __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES)));
    typedef typename Lanes<F>::Int I __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES)));
    static constexpr int W = FUSED_RNN_VECTOR_BYTES / sizeof(F);
};
template <class F>
using Vec = typename Simd<F>::V;

// The numbers 0 to W-1 as a type, for shuffles.
template <class T, T...>
struct LaneNumbers {};
#if defined(__clang__)
template <int W>
using AllLanes = __make_integer_seq<LaneNumbers, int, W>;
#else
template <int W>
using AllLanes = LaneNumbers<int, __integer_pack(W)...>;
#endif

typedef uint32_t U32 __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES)));
typedef uint16_t U16 __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES / 2)));
typedef uint64_t U64 __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES)));

template <class To, class From>
FUSED_RNN_INLINE To bits_as(From v) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To out;
    __builtin_memcpy(&out, &v, sizeof(out));
    return out;
}

template <class V, class F>
FUSED_RNN_INLINE V splat(F x) {
    return x - V{};  // minus keeps the sign of zero, and folds away
}

// a * b + c, fused where the instruction set can: said outright, since the compiler may contract one copy of an unrolled
// product and not its neighbour, and then an element's bits would depend on where it fell.
FUSED_RNN_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
#if FUSED_RNN_VECTOR_BYTES == 64
    return bits_as<Vec<float>>(_mm512_fmadd_ps(bits_as<__m512>(a), bits_as<__m512>(b), bits_as<__m512>(c)));
#elif FUSED_RNN_VECTOR_BYTES == 32
    return bits_as<Vec<float>>(_mm256_fmadd_ps(bits_as<__m256>(a), bits_as<__m256>(b), bits_as<__m256>(c)));
#else
    return a * b + c;
#endif
}
FUSED_RNN_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
#if FUSED_RNN_VECTOR_BYTES == 64
    return bits_as<Vec<double>>(_mm512_fmadd_pd(bits_as<__m512d>(a), bits_as<__m512d>(b), bits_as<__m512d>(c)));
#elif FUSED_RNN_VECTOR_BYTES == 32
    return bits_as<Vec<double>>(_mm256_fmadd_pd(bits_as<__m256d>(a), bits_as<__m256d>(b), bits_as<__m256d>(c)));
#else
    return a * b + c;
#endif
}

// Products of the even lanes with m, whatever the odd ones hold.
FUSED_RNN_INLINE U64 multiply_even(U64 a, uint32_t m) {
#if FUSED_RNN_VECTOR_BYTES == 64
    return bits_as<U64>(_mm512_maskz_mul_epu32(0xff, bits_as<__m512i>(a), _mm512_set1_epi64(m)));
#elif FUSED_RNN_VECTOR_BYTES == 32
    return bits_as<U64>(_mm256_mul_epu32(bits_as<__m256i>(a), _mm256_set1_epi64x(m)));
#else
    return (a & 0xffffffffu) * m;
#endif
}
// The halves of a * m.
FUSED_RNN_INLINE U32 multiply_wide(U32 a, uint32_t m, U32& high) {
    const U64 pairs = bits_as<U64>(a), even = multiply_even(pairs, m), odd = multiply_even(pairs >> 32, m);
    high = bits_as<U32>((even >> 32) | (odd & ~uint64_t(0xffffffffu)));
    return bits_as<U32>((even & 0xffffffffu) | (odd << 32));
}

// ---- loads and stores of n lanes (1 <= n <= W), with conversion from and to storage types --------

// Memory type and number of lanes -> raw lanes. Lanes past n are zero.
template <class V, class E>
FUSED_RNN_INLINE V load_lanes(const E* p, int n) {
    V v = {};
    if (n * sizeof(E) >= sizeof(V)) {
        __builtin_memcpy(&v, p, sizeof(V));
    } else {
        E tmp[sizeof(V) / sizeof(E)] = {};
        for (int k = 0; k < n; ++k) tmp[k] = p[k];
        __builtin_memcpy(&v, tmp, sizeof(V));
    }
    return v;
}

template <class V, class E>
FUSED_RNN_INLINE void store_lanes(E* p, V v, int n) {
    if (n * sizeof(E) >= sizeof(V)) {
        __builtin_memcpy(p, &v, sizeof(V));
    } else {
        E tmp[sizeof(V) / sizeof(E)];
        __builtin_memcpy(tmp, &v, sizeof(V));
        for (int k = 0; k < n; ++k) p[k] = tmp[k];
    }
}

#if FUSED_RNN_VECTOR_BYTES == 64
// A masked access costs what a whole one does; the copy through memory above stalls on forwarding.
template <>
FUSED_RNN_INLINE Vec<float> load_lanes(const float* p, int n) {
    return bits_as<Vec<float>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
}
template <>
FUSED_RNN_INLINE Vec<double> load_lanes(const double* p, int n) {
    return bits_as<Vec<double>>(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p));
}
template <>
FUSED_RNN_INLINE U16 load_lanes(const uint16_t* p, int n) {
    return bits_as<U16>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p));
}
template <>
FUSED_RNN_INLINE void store_lanes(float* p, Vec<float> v, int n) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), bits_as<__m512>(v));
}
template <>
FUSED_RNN_INLINE void store_lanes(double* p, Vec<double> v, int n) {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), bits_as<__m512d>(v));
}
template <>
FUSED_RNN_INLINE void store_lanes(uint16_t* p, U16 v, int n) {
    _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), bits_as<__m256i>(v));
}
#endif

template <class F>
FUSED_RNN_INLINE Vec<F> load(const F* p, int n) {
    return load_lanes<Vec<F>>(p, n);
}
// No template: for a narrow type it would ask for a vector of structs.
FUSED_RNN_INLINE void store(float* p, Vec<float> v, int n) { store_lanes(p, v, n); }
FUSED_RNN_INLINE void store(double* p, Vec<double> v, int n) { store_lanes(p, v, n); }

template <class F>
FUSED_RNN_INLINE Vec<float> load(const bf16* p, int n) {
    const U16 raw = load_lanes<U16>(reinterpret_cast<const uint16_t*>(p), n);
    return bits_as<Vec<float>>(__builtin_convertvector(raw, U32) << 16);
}
// Rounded to nearest even; a NaN keeps its sign and stays a NaN.
FUSED_RNN_INLINE U16 rounded_to_bf16(Vec<float> v) {
#if defined(FUSED_RNN_BF16_INSTRUCTIONS)
    constexpr int kSubnormal = 0x20;  // which the instruction takes for 0
    if (!_mm512_fpclass_ps_mask(bits_as<__m512>(v), kSubnormal)) [[likely]]
        return bits_as<U16>(_mm512_cvtneps_pbh(bits_as<__m512>(v)));
#endif
    const U32 u = bits_as<U32>(v);
    const U32 rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const U32 nan = (u >> 16) | 0x40u;
    const U32 is_nan = bits_as<U32>((u & 0x7fffffffu) > 0x7f800000u);
    return __builtin_convertvector((is_nan & nan) | (~is_nan & rounded), U16);
}
FUSED_RNN_INLINE void store(bf16* p, Vec<float> v, int n) {
    store_lanes(reinterpret_cast<uint16_t*>(p), rounded_to_bf16(v), n);
}

template <class F>
FUSED_RNN_INLINE Vec<float> load(const f16* p, int n) {
    const U16 raw = load_lanes<U16>(reinterpret_cast<const uint16_t*>(p), n);
#if FUSED_RNN_VECTOR_BYTES == 64
    return bits_as<Vec<float>>(_mm512_maskz_cvtph_ps(0xffff, bits_as<__m256i>(raw)));
#elif FUSED_RNN_VECTOR_BYTES == 32
    return bits_as<Vec<float>>(_mm256_cvtph_ps(bits_as<__m128i>(raw)));
#else
    // Exponent and mantissa moved into place, then scaled by 2^112: subnormals come out right too.
    const U32 u = __builtin_convertvector(raw, U32);
    const Vec<float> scaled = bits_as<Vec<float>>((u & 0x7fffu) << 13) * 0x1p112f;
    const U32 special = bits_as<U32>((u & 0x7c00u) == 0x7c00u) & 0x7f800000u;
    return bits_as<Vec<float>>(bits_as<U32>(scaled) | special | (u & 0x8000u) << 16);
#endif
}
FUSED_RNN_INLINE void store(f16* p, Vec<float> v, int n) {
#if FUSED_RNN_VECTOR_BYTES == 64
    const U16 out = bits_as<U16>(_mm512_maskz_cvtps_ph(0xffff, bits_as<__m512>(v), 0));
#elif FUSED_RNN_VECTOR_BYTES == 32
    const U16 out = bits_as<U16>(_mm256_cvtps_ph(bits_as<__m256>(v), 0));
#else
    const U32 sign = bits_as<U32>(v) & 0x80000000u;
    const U32 u = bits_as<U32>(v) ^ sign;
    // Normal results: rebias and round to even. Subnormal: adding 0.5 lets the adder round.
    const U32 normal = (u - 0x38000000u + 0xfffu + ((u >> 13) & 1u)) >> 13;
    const U32 tiny = bits_as<U32>(bits_as<Vec<float>>(u) + 0.5f) - 0x3f000000u;
    const U32 is_tiny = bits_as<U32>(u < 0x38800000u);
    const U32 is_big = bits_as<U32>(u >= 0x477ff000u);  // rounds past 65504
    const U32 is_nan = bits_as<U32>(u > 0x7f800000u);
    U32 r = (is_tiny & tiny) | (~is_tiny & normal);
    r = (is_big & 0x7c00u) | (~is_big & r);
    r = (is_nan & 0x7e00u) | (~is_nan & r);
    const U16 out = __builtin_convertvector(r | sign >> 16, U16);
#endif
    store_lanes(reinterpret_cast<uint16_t*>(p), out, n);
}

// ---- exp, sigmoid, tanh -----------------------------------------------------------------------
// Maximal error, tested in tests/test_vector_math.py over the whole range: f32 3 ULP, f64 3 ULP. NaN stays
// NaN: every clamp is written so that it keeps x.

#if FUSED_RNN_VECTOR_BYTES == 64
// Of a number and NaN these instructions take the second operand.
FUSED_RNN_INLINE Vec<float> clamp(Vec<float> x, float low, float high) {
    const __m512 above = _mm512_maskz_max_ps(0xffff, _mm512_set1_ps(low), bits_as<__m512>(x));
    return bits_as<Vec<float>>(_mm512_maskz_min_ps(0xffff, _mm512_set1_ps(high), above));
}
FUSED_RNN_INLINE Vec<double> clamp(Vec<double> x, double low, double high) {
    const __m512d above = _mm512_maskz_max_pd(0xff, _mm512_set1_pd(low), bits_as<__m512d>(x));
    return bits_as<Vec<double>>(_mm512_maskz_min_pd(0xff, _mm512_set1_pd(high), above));
}
#else
template <class V, class F>
FUSED_RNN_INLINE V clamp(V x, F low, F high) {
    x = x > high ? splat<V>(high) : x;
    return x < low ? splat<V>(low) : x;
}
#endif

// 2^n for a whole n in the range of exponents, from n + round_magic: its low bits are the exponent.
template <class F>
FUSED_RNN_INLINE Vec<F> power_of_two(Vec<F> shifted) {
    return bits_as<Vec<F>>(bits_as<typename Simd<F>::I>(shifted) << Lanes<F>::mantissa);
}

// k x = n ln2 + k s with |k s| <= ln2/2, k a power of two or -1: gives expm1(k s) / k and 2^n. Of r = k s, f32:
// (expm1(r) - r) / r^2 interpolated at Chebyshev points, within 2^-25; f64: Taylor, remainder below half an ULP.
template <class F, int k>
FUSED_RNN_INLINE Vec<F> expm1_reduced(Vec<F> x, Vec<F>& power) {
    using L = Lanes<F>;
    // Of r^(2 + degree), for s.
    constexpr auto coefficient = [](double of_r, int degree) {
        double scale = k;
        for (int i = 0; i < degree; ++i) scale *= k;
        return static_cast<F>(of_r) * static_cast<F>(scale);
    };
    const Vec<F> shifted = x * F(k * 1.4426950408889634) + L::round_magic;
    const Vec<F> n = shifted - L::round_magic;
    const Vec<F> s = (x - n * (L::ln2_hi / k)) - n * (L::ln2_lo / k);
    power = power_of_two<F>(shifted);
    Vec<F> p;
    if constexpr (sizeof(F) == 4) {
        p = splat<Vec<F>>(coefficient(1.3926184e-3, 4));
        p = p * s + coefficient(8.3631791e-3, 3);
        p = p * s + coefficient(4.16665546e-2, 2);
        p = p * s + coefficient(1.66665770e-1, 1);
    } else {
        p = splat<Vec<F>>(coefficient(1.0 / 6227020800.0, 11));
        p = p * s + coefficient(1.0 / 479001600.0, 10);
        p = p * s + coefficient(1.0 / 39916800.0, 9);
        p = p * s + coefficient(1.0 / 3628800.0, 8);
        p = p * s + coefficient(1.0 / 362880.0, 7);
        p = p * s + coefficient(1.0 / 40320.0, 6);
        p = p * s + coefficient(1.0 / 5040.0, 5);
        p = p * s + coefficient(1.0 / 720.0, 4);
        p = p * s + coefficient(1.0 / 120, 3);
        p = p * s + coefficient(1.0 / 24, 2);
        p = p * s + coefficient(1.0 / 6, 1);
    }
    p = p * s + coefficient(0.5, 0);
    return s + (s * s) * p;
}

// a / b for finite b.
template <class F>
FUSED_RNN_INLINE Vec<F> divide(Vec<F> a, Vec<F> b) {
#if FUSED_RNN_VECTOR_BYTES == 64
    if constexpr (sizeof(F) == 4) {
        // 14 bits, and a correction of the quotient, which leaves 2^-28 before it is rounded: 0.56 ULP, faster than the
        // division instruction.
        const Vec<F> y = bits_as<Vec<F>>(_mm512_maskz_rcp14_ps(0xffff, bits_as<__m512>(b)));
        const Vec<F> q = a * y;
        return q + y * (a - b * q);
    }
#endif
    return a / b;
}

template <class F>
FUSED_RNN_INLINE Vec<F> sigmoid(Vec<F> x) {
    using L = Lanes<F>;
    Vec<F> power;
    const Vec<F> minus_em1 = expm1_reduced<F, -1>(clamp(x, -L::exp_high, -L::exp_low), power);
    const Vec<F> s = divide<F>(splat<Vec<F>>(F(1)), (power + F(1)) - power * minus_em1);
    return x < -L::exp_high ? Vec<F>{} : s;  // 0, or a product with an infinite value would not be NaN
}

// t with the sign bit of x, where it has none.
template <class F>
FUSED_RNN_INLINE Vec<F> or_sign(Vec<F> t, Vec<F> x) {
    using I = typename Simd<F>::I;
    using Scalar = typename Lanes<F>::Int;
    constexpr Scalar sign_bit = Scalar(1) << (sizeof(F) * 8 - 1);
#if FUSED_RNN_VECTOR_BYTES == 64
    constexpr int first_or_both_others = 0xf8;
    return bits_as<Vec<F>>(_mm512_ternarylogic_epi32(bits_as<__m512i>(t), bits_as<__m512i>(x),
                                                     bits_as<__m512i>(splat<I>(sign_bit)), first_or_both_others));
#else
    return bits_as<Vec<F>>(bits_as<I>(t) | (bits_as<I>(x) & sign_bit));
#endif
}

// m / (m + 1) with m = expm1(2x) / 2: no cancellation near 0.
template <class F>
FUSED_RNN_INLINE Vec<F> hyperbolic_tangent(Vec<F> x) {
    Vec<F> power;
    const Vec<F> half_em1 = expm1_reduced<F, 2>(clamp(x, F(-20), F(20)), power);
    const Vec<F> m = power * half_em1 + (power * F(0.5) - F(0.5));
    return or_sign<F>(divide<F>(m, m + F(1)), x);  // of -0
}
