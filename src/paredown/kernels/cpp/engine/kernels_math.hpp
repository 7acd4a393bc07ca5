// Vector activations. Relative error of exp below 4e-7; gelu below 5e-7 absolute, or, where the result
// is rounded to bf16 or 8 bits anyway (`Fast`), below 6.5e-5 by parabolas (AVX-512), 1.2e-4 by one polynomial.
#pragma once
#include "kernels_simd.hpp"

namespace paredown::engine {
namespace {

// 2^n times the Taylor polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2]; below -87 the result is about 1e-38.
PAREDOWN_INLINE F exponential(F x) {
    const F clamped = min(max(x, set(-87.0F)), set(88.0F));
    const F n = nearest(clamped * set(1.44269504F));
    const F r = fma(n, set(2.12194440e-4F), fma(n, set(-0.693359375F), clamped));
    F p = fma(set(1.0F / 720), r, set(1.0F / 120));
    p = fma(p, r, set(1.0F / 24));
    p = fma(p, r, set(1.0F / 6));
    p = fma(p, r, set(0.5F));
    p = fma(p, r, set(1));
    p = fma(p, r, set(1));
    return keep_nan(x, p * power_of_two(n));
}

#ifdef __AVX512F__
// 2^x for x <= 0, to 7.5e-5 of itself (own fit of degree 3 on [0, 1), weighted least squares reweighted
// to the largest relative error): enough where the result is rounded to bf16. Below -126 it is 0: a result
// that is no normal number would cost hundreds of cycles, and a mask's -inf is in every vector.
PAREDOWN_INLINE F power_of_two_fast(F x) {
    const __mmask16 normal = _mm512_cmp_ps_mask(x, set(-126), _CMP_NLT_UQ);  // or NaN
    const F bounded = max(set(-126), x);                                      // NaN comes from the second operand
    const F r = _mm512_reduce_ps(bounded, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    F p = fma(set(0.0780245215F), r, set(0.226067171F));
    p = fma(p, r, set(0.695833504F));
    p = fma(p, r, set(0.999925196F));
    return _mm512_maskz_scalef_ps(normal, p, bounded);  // takes the exponent's floor itself
}
#endif

// 1 / x for normal x of moderate size.
PAREDOWN_INLINE F reciprocal(F x) {
#ifdef __AVX512F__
    const F y = _mm512_rcp14_ps(x);
    return y * (set(2) - x * y);
#else
    return set(1) / x;
#endif
}

PAREDOWN_INLINE F logistic(F x) {
    const F bounded = keep_nan(x, min(max(x, set(-80)), set(80)));
    return reciprocal(set(1) + exponential(zero() - bounded));
}

// 2 sigmoid(2x) - 1 loses digits near zero, where tanh is x - x^3 / 3 + 2 x^5 / 15.
PAREDOWN_INLINE F hyperbolic_tangent(F x) {
    const F far = fma(set(2), logistic(x + x), set(-1));
    const F t = x * x;
    const F near = fma(fma(fma(set(-17.0F / 315), t, set(2.0F / 15)), t, set(-1.0F / 3)) * t, x, x);
#ifdef __AVX512F__
    return _mm512_mask_mov_ps(far, _mm512_cmp_ps_mask(t, set(0.02F), _CMP_LT_OQ), near);
#else
    return _mm256_blendv_ps(far, near, _mm256_cmp_ps(t, set(0.02F), _CMP_LT_OQ));
#endif
}

PAREDOWN_INLINE F absolute(F x) { return max(x, zero() - x); }

// The normal distribution function by Abramowitz and Stegun 7.1.26 (erf to 1.5e-7).
PAREDOWN_INLINE F normal_cdf(F x) {
    const F z = min(absolute(x) * set(0.70710678F), set(9));
    const F t = reciprocal(fma(set(0.3275911F), z, set(1)));
    F p = fma(set(1.061405429F), t, set(-1.453152027F));
    p = fma(p, t, set(1.421413741F));
    p = fma(p, t, set(-0.284496736F));
    p = fma(p, t, set(0.254829592F));
    const F tail = set(0.5F) * p * t * exponential(zero() - z * z);  // of |x|
#ifdef __AVX512F__
    return _mm512_mask_sub_ps(tail, _mm512_cmp_ps_mask(x, zero(), _CMP_GT_OQ), set(1), tail);
#else
    return _mm256_blendv_ps(tail, set(1) - tail, _mm256_cmp_ps(x, zero(), _CMP_GT_OQ));
#endif
}

#ifdef __AVX512F__
// max(x, 0) - g(|x|) with g(a) = a Phi(-a), which is a parabola on each quarter of [0, 4) (own fit, weighted
// least squares reweighted to the largest error; through 0 at 0, through g(4) / 2 at 4 and beyond). Adding
// 2^21 towards zero leaves the number of the quarter in the lowest bits, where the permutations look for it.
PAREDOWN_INLINE F gelu_fast(F x) {
    const F a = min(_mm512_abs_ps(x), set(3.9999998F));
    const I quarter = _mm512_castps_si512(
        _mm512_add_round_ps(a, set(2097152), _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC));
    const F p0 = _mm512_setr_ps(0, 0.00340994867F, 0.0242822226F, 0.0782945901F, 0.167556599F, 0.274492323F,
                                0.368978351F, 0.423238605F, 0.424446076F, 0.378195167F, 0.302797943F,
                                0.219620883F, 0.145188004F, 0.0878945813F, 0.0489065833F, -0.026000265F);
    const F p1 = _mm512_setr_ps(0.499297053F, 0.47402674F, 0.391937375F, 0.248376817F, 0.069509469F,
                                -0.102428369F, -0.229378939F, -0.292205095F, -0.293939978F, -0.253067255F,
                                -0.192781761F, -0.132212058F, -0.0824804828F, -0.0471249782F, -0.0247756392F,
                                0.0145134646F);
    const F p2 = _mm512_setr_ps(-0.392321616F, -0.344792813F, -0.263688475F, -0.168078616F, -0.0783578679F,
                                -0.0091891475F, 0.0334756114F, 0.0516666397F, 0.0522326194F, 0.0432007462F,
                                0.0311476458F, 0.0201190412F, 0.0118109668F, 0.00635590032F, 0.00315272133F,
                                -0.00199939078F);
    const auto of = [&](F table) { return _mm512_permutexvar_ps(quarter, table); };
    const F g = fma(fma(of(p2), a, of(p1)), a, of(p0));
    return max(zero(), x) - g;  // NaN comes from the second operand
}
#else
// 1/2 + x P(x^2), fitted to make the error of x Phi(x) even over |x| < 4.2 (own fit, weighted least
// squares reweighted to the largest error).
PAREDOWN_INLINE F normal_cdf_fast(F x) {
    const F y = min(max(x, set(-4.2F)), set(4.2F));
    const F t = y * y;
    F p = fma(set(-2.3066059725675148e-12F), t, set(2.4950649783535077e-10F));
    p = fma(p, t, set(-1.2165745621953545e-08F));
    p = fma(p, t, set(3.568778670922168e-07F));
    p = fma(p, t, set(-7.116479461589618e-06F));
    p = fma(p, t, set(0.00010354527803076394F));
    p = fma(p, t, set(-0.0011484134051534512F));
    p = fma(p, t, set(0.009898750146362092F));
    p = fma(p, t, set(-0.06641822916391044F));
    p = fma(p, t, set(0.39891801203640254F));
    return min(max(fma(p, y, set(0.5F)), zero()), set(1));
}

PAREDOWN_INLINE F gelu_fast(F x) { return x * normal_cdf_fast(x); }
#endif

template <Act A, bool Fast>
PAREDOWN_INLINE F activate(F x) {
    if constexpr (A == Act::relu) return max(zero(), x);  // NaN comes from the second operand
    if constexpr (A == Act::relu6) return min(set(6), max(zero(), x));
    if constexpr (A == Act::silu) return x * logistic(x);
    if constexpr (A == Act::sigmoid) return logistic(x);
    if constexpr (A == Act::hardswish)
        return x * min(max(fma(x, set(1.0F / 6), set(0.5F)), zero()), set(1));
    if constexpr (A == Act::hardsigmoid)
        return min(set(1), max(zero(), fma(x, set(1.0F / 6), set(0.5F))));
    if constexpr (A == Act::gelu && Fast) return gelu_fast(x);
    if constexpr (A == Act::gelu && !Fast) return x * normal_cdf(x);
    if constexpr (A == Act::gelu_tanh)  // 0.5 (1 + tanh(u)) = sigmoid(2u)
        return x * logistic(set(1.5957691F) * x * fma(set(0.044715F), x * x, set(1)));
    if constexpr (A == Act::tanh) return keep_nan(x, hyperbolic_tangent(x));
    return x;
}

template <Act A>
struct Activation {
    static constexpr Act value = A;
};
template <typename Call>
PAREDOWN_INLINE void with_activation(Act act, Call&& call) {
    switch (act) {
        case Act::none: call(Activation<Act::none>{}); break;
        case Act::relu: call(Activation<Act::relu>{}); break;
        case Act::relu6: call(Activation<Act::relu6>{}); break;
        case Act::silu: call(Activation<Act::silu>{}); break;
        case Act::hardswish: call(Activation<Act::hardswish>{}); break;
        case Act::gelu: call(Activation<Act::gelu>{}); break;
        case Act::gelu_tanh: call(Activation<Act::gelu_tanh>{}); break;
        case Act::sigmoid: call(Activation<Act::sigmoid>{}); break;
        case Act::hardsigmoid: call(Activation<Act::hardsigmoid>{}); break;
        case Act::tanh: call(Activation<Act::tanh>{}); break;
    }
}

// An activation that is known at run time only: one copy of the code of all.
[[maybe_unused, gnu::noinline]] F activate_any(F x, Act act) {
    F y = x;
    with_activation(act, [&](auto a) { y = activate<decltype(a)::value, false>(x); });
    return y;
}

// The same for many vectors: what only bounds its argument is two instructions, no call.
struct Late {
    Act act;
    bool bounds;
    F low, high;
    explicit Late(Act a)
        : act(a),
          bounds(a == Act::none || a == Act::relu || a == Act::relu6),
          low(set(a == Act::none ? -INFINITY : 0.0F)),
          high(set(a == Act::relu6 ? 6.0F : INFINITY)) {}
    // NaN comes from the second operand.
    F operator()(F v) const { return bounds ? min(high, max(low, v)) : activate_any(v, act); }
};

}  // namespace
}  // namespace paredown::engine
