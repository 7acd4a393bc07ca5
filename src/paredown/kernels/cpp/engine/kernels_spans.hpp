// Spans of values in and out of a float buffer: what the row kernels are made of. The type is looked at
// once per span, not once per vector.
#pragma once
#include "kernels_math.hpp"

namespace paredown::engine {
namespace {

// Calls f(element, lanes) for whole vectors, then for the rest.
template <typename Call>
PAREDOWN_INLINE void each_vector(int64_t count, Call&& call) {
    int64_t i = 0;
    for (; i + W <= count; i += W) call(i, W);
    if (i < count) call(i, static_cast<int>(count - i));
}

// The sum of f(element, lanes) over `count` values, in four sums at once; lanes beyond must be zero.
template <typename Call>
PAREDOWN_INLINE F sum_vectors(int64_t count, Call&& call) {
    F a = zero(), b = zero(), c = zero(), d = zero();
    int64_t i = 0;
    for (; i + 4 * W <= count; i += 4 * W) {
        a = a + call(i, W);
        b = b + call(i + W, W);
        c = c + call(i + 2 * W, W);
        d = d + call(i + 3 * W, W);
    }
    for (; i + W <= count; i += W) a = a + call(i, W);
    if (i < count) b = b + call(i, static_cast<int>(count - i));
    return (a + b) + (c + d);
}

[[maybe_unused]] inline const void* element(const void* p, DType t, int64_t i) {
    return static_cast<const char*>(p) + i * static_cast<int64_t>(size_of(t));
}
[[maybe_unused]] inline void* element(void* p, DType t, int64_t i) {
    return static_cast<char*>(p) + i * static_cast<int64_t>(size_of(t));
}

// to[0, count) = the values at element `first`.
[[maybe_unused]] inline void load_span(const void* p, DType type, int64_t first, int64_t count, float scale,
                                       int32_t zero_point, float* to) {
    const void* from = element(p, type, first);
    with_type(type, [&](auto t) {
        constexpr DType T = decltype(t)::value;
        const F s = set(scale), z = set(static_cast<float>(zero_point));
        each_vector(count, [&](int64_t i, int n) {
            F v = load_n<T>(from, i, n);
            if constexpr (T == DType::u8 || T == DType::s8) v = (v - z) * s;
            store_n<DType::f32>(to + i, v, n);
        });
    });
}

[[maybe_unused]] inline void store_span(const float* from, int64_t count, void* p, DType type, int64_t first,
                                        float scale, int32_t zero_point) {
    void* to = element(p, type, first);
    const float inverse = 1 / scale;
    with_type(type, [&](auto t) {
        constexpr DType T = decltype(t)::value;
        each_vector(count, [&](int64_t i, int n) {
            F v = load_n<DType::f32>(from, i, n);
            if constexpr (T == DType::u8 || T == DType::s8) v = quantise(v, inverse, zero_point);
            store_n<T>(element(to, T, i), v, n);
        });
    });
}

// In place; `rounded` allows the short gelu (kernels_math.hpp).
[[maybe_unused]] inline void activate_span(float* p, int64_t count, Act act, bool rounded) {
    if (act == Act::none) return;
    with_activation(act, [&](auto a) {
        constexpr Act A = decltype(a)::value;
        each_vector(count, [&](int64_t i, int n) {
            const F x = load_n<DType::f32>(p, i, n);
            store_n<DType::f32>(p + i, A == Act::gelu && rounded ? activate<A, true>(x) : activate<A, false>(x),
                                n);
        });
    });
}

}  // namespace
}  // namespace paredown::engine
