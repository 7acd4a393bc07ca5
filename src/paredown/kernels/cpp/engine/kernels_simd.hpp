// Vectors of floats on AVX-512 (16 lanes) and AVX2 (8 lanes) under one set of names, with conversions to
// and from every stored type. Internal linkage: compiled anew for each instruction set.
#pragma once
#include <immintrin.h>

#include "kernels_common.hpp"

#define PAREDOWN_INLINE [[maybe_unused]] static inline __attribute__((always_inline))

namespace paredown::engine {
namespace {

#ifdef __AVX512F__

constexpr int W = 16;
using F = __m512;
using I = __m512i;

PAREDOWN_INLINE F set(float x) { return _mm512_set1_ps(x); }
PAREDOWN_INLINE I set_int(int32_t x) { return _mm512_set1_epi32(x); }
PAREDOWN_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
// The second operand where either is NaN, as the instruction has it: clamps send NaN to their limit.
PAREDOWN_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
PAREDOWN_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
PAREDOWN_INLINE F nearest(F a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
PAREDOWN_INLINE I to_int(F a) { return _mm512_cvtps_epi32(a); }
PAREDOWN_INLINE F to_float(I a) { return _mm512_cvtepi32_ps(a); }
PAREDOWN_INLINE I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
PAREDOWN_INLINE F power_of_two(F n) { return _mm512_scalef_ps(set(1), n); }
PAREDOWN_INLINE float sum_lanes(F a) { return _mm512_reduce_add_ps(a); }
PAREDOWN_INLINE float max_lanes(F a) { return _mm512_reduce_max_ps(a); }
// x where a is NaN, else a.
PAREDOWN_INLINE F keep_nan(F a, F x) {
    return _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
}

PAREDOWN_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1U << n) - 1); }

PAREDOWN_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
PAREDOWN_INLINE I load(const int32_t* p) { return _mm512_loadu_si512(p); }
PAREDOWN_INLINE void store(float* p, F v) { _mm512_storeu_ps(p, v); }
PAREDOWN_INLINE void store(int32_t* p, I v) { _mm512_storeu_si512(p, v); }

PAREDOWN_INLINE F widen_bf16(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

PAREDOWN_INLINE __m256i narrow_bf16(F v) {
#ifdef __AVX512BF16__
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));  // denormals become zero
#else
    const I bits = _mm512_castps_si512(v);
    const I odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), set_int(1));
    I rounded = _mm512_srli_epi32(add_int(add_int(bits, odd), set_int(0x7FFF)), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, _mm512_srli_epi32(bits, 16), set_int(0x40));
    return _mm512_cvtepi32_epi16(rounded);
#endif
}

template <DType T>
PAREDOWN_INLINE F load_as(const void* p) {
    if constexpr (T == DType::f32) return _mm512_loadu_ps(p);
    if constexpr (T == DType::bf16) return widen_bf16(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
    if constexpr (T == DType::u8)
        return to_float(_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
    if constexpr (T == DType::s8)
        return to_float(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
    if constexpr (T == DType::s32) return to_float(_mm512_loadu_si512(p));
}

// Lanes beyond n are zero and not read.
template <DType T>
PAREDOWN_INLINE F load_first(const void* p, int n) {
    const __mmask16 m = first(n);
    if constexpr (T == DType::f32) return _mm512_maskz_loadu_ps(m, p);
    if constexpr (T == DType::bf16) return widen_bf16(_mm256_maskz_loadu_epi16(m, p));
    if constexpr (T == DType::u8) return to_float(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, p)));
    if constexpr (T == DType::s8) return to_float(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(m, p)));
    if constexpr (T == DType::s32) return to_float(_mm512_maskz_loadu_epi32(m, p));
}

// Values of quantised types are already in units of the last place, with the zero point added.
template <DType T>
PAREDOWN_INLINE void store_first(void* p, F v, int n) {
    const __mmask16 m = first(n);
    if constexpr (T == DType::f32) _mm512_mask_storeu_ps(p, m, v);
    if constexpr (T == DType::bf16) _mm256_mask_storeu_epi16(p, m, narrow_bf16(v));
    if constexpr (T == DType::u8)
        _mm512_mask_cvtepi32_storeu_epi8(p, m, to_int(min(max(v, set(0)), set(255))));
    if constexpr (T == DType::s8)
        _mm512_mask_cvtepi32_storeu_epi8(p, m, to_int(min(max(v, set(-128)), set(127))));
}

// The low byte of each lane.
PAREDOWN_INLINE void store_bytes(void* p, I v) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
}

template <DType T>
PAREDOWN_INLINE void store_as(void* p, F v) {
    if constexpr (T == DType::f32) _mm512_storeu_ps(p, v);
    if constexpr (T == DType::bf16) _mm256_storeu_si256(static_cast<__m256i*>(p), narrow_bf16(v));
    if constexpr (T == DType::u8) store_bytes(p, to_int(min(max(v, set(0)), set(255))));
    if constexpr (T == DType::s8) store_bytes(p, to_int(min(max(v, set(-128)), set(127))));
}

#else  // AVX2

constexpr int W = 8;
using F = __m256;
using I = __m256i;

PAREDOWN_INLINE F set(float x) { return _mm256_set1_ps(x); }
PAREDOWN_INLINE I set_int(int32_t x) { return _mm256_set1_epi32(x); }
PAREDOWN_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
PAREDOWN_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
PAREDOWN_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
PAREDOWN_INLINE F nearest(F a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
PAREDOWN_INLINE I to_int(F a) { return _mm256_cvtps_epi32(a); }
PAREDOWN_INLINE F to_float(I a) { return _mm256_cvtepi32_ps(a); }
PAREDOWN_INLINE I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
// n in [-126, 127].
PAREDOWN_INLINE F power_of_two(F n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(add_int(to_int(n), set_int(127)), 23));
}
PAREDOWN_INLINE float sum_lanes(F a) {
    alignas(32) float lane[W];
    _mm256_store_ps(lane, a);
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}
PAREDOWN_INLINE float max_lanes(F a) {
    alignas(32) float lane[W];
    _mm256_store_ps(lane, a);
    float top = lane[0];
    for (int i = 1; i < W; ++i) top = lane[i] > top ? lane[i] : top;
    return top;
}
PAREDOWN_INLINE F keep_nan(F a, F x) {
    return _mm256_blendv_ps(x, a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}

PAREDOWN_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
PAREDOWN_INLINE I load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const I*>(p)); }
PAREDOWN_INLINE void store(float* p, F v) { _mm256_storeu_ps(p, v); }
PAREDOWN_INLINE void store(int32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<I*>(p), v); }

template <DType T>
PAREDOWN_INLINE F load_as(const void* p) {
    if constexpr (T == DType::f32) return _mm256_loadu_ps(static_cast<const float*>(p));
    if constexpr (T == DType::bf16)
        return _mm256_castsi256_ps(_mm256_slli_epi32(
            _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))), 16));
    if constexpr (T == DType::u8)
        return to_float(_mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
    if constexpr (T == DType::s8)
        return to_float(_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
    if constexpr (T == DType::s32)
        return to_float(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}

template <DType T>
PAREDOWN_INLINE F load_first(const void* p, int n) {
    alignas(32) char part[W * 4] = {};
    std::memcpy(part, p, static_cast<size_t>(n) * size_of(T));
    return load_as<T>(part);
}

// The low byte of each lane.
PAREDOWN_INLINE void store_bytes(void* p, I v) {
    const I byte = _mm256_shuffle_epi8(v, _mm256_set1_epi32(0x0C080400));  // four times over
    const uint32_t parts[2] = {static_cast<uint32_t>(_mm256_extract_epi32(byte, 0)),
                               static_cast<uint32_t>(_mm256_extract_epi32(byte, 4))};
    std::memcpy(p, parts, 8);
}

template <DType T>
PAREDOWN_INLINE void store_as(void* p, F v) {
    if constexpr (T == DType::f32) _mm256_storeu_ps(static_cast<float*>(p), v);
    if constexpr (T == DType::bf16) {
        const I bits = _mm256_castps_si256(v);
        const I odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), set_int(1));
        I rounded = _mm256_srli_epi32(add_int(add_int(bits, odd), set_int(0x7FFF)), 16);
        const I quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), set_int(0x40));
        rounded = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
        const I packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x88);
        _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
    }
    if constexpr (T == DType::u8 || T == DType::s8) {
        const F low = set(T == DType::u8 ? 0 : -128), high = set(T == DType::u8 ? 255 : 127);
        store_bytes(p, to_int(min(max(v, low), high)));
    }
}

template <DType T>
PAREDOWN_INLINE void store_first(void* p, F v, int n) {
    alignas(32) char part[W * 4];
    store_as<T>(part, v);
    std::memcpy(p, part, static_cast<size_t>(n) * size_of(T));
}

#endif

PAREDOWN_INLINE F zero() { return set(0); }
PAREDOWN_INLINE bool is_quantised(DType t) { return t == DType::u8 || t == DType::s8; }

// A float as it reads when stored as bf16.
PAREDOWN_INLINE F rounded_to_bf16(F v) {
#ifdef __AVX512F__
    return widen_bf16(narrow_bf16(v));
#else
    alignas(32) uint16_t stored[W];
    store_as<DType::bf16>(stored, v);
    return load_as<DType::bf16>(stored);
#endif
}

// Calls f(std::integral_constant-like tag) for the type: one branch outside a loop, none inside.
template <DType T>
struct Type {
    static constexpr DType value = T;
};
template <typename Call>
PAREDOWN_INLINE void with_type(DType t, Call&& call) {
    switch (t) {
        case DType::f32: call(Type<DType::f32>{}); break;
        case DType::bf16: call(Type<DType::bf16>{}); break;
        case DType::u8: call(Type<DType::u8>{}); break;
        case DType::s8: call(Type<DType::s8>{}); break;
        case DType::s32: break;
    }
}

// The first n <= W values at element i, as numbers (zero point and scale taken off).
PAREDOWN_INLINE F load_value(const void* p, DType t, int64_t i, int n, float scale, int32_t zero_point) {
    const char* at = static_cast<const char*>(p) + i * static_cast<int64_t>(size_of(t));
    switch (t) {
        case DType::f32: return n == W ? load_as<DType::f32>(at) : load_first<DType::f32>(at, n);
        case DType::bf16: return n == W ? load_as<DType::bf16>(at) : load_first<DType::bf16>(at, n);
        case DType::u8: {
            const F q = n == W ? load_as<DType::u8>(at) : load_first<DType::u8>(at, n);
            return (q - set(static_cast<float>(zero_point))) * set(scale);
        }
        case DType::s8: {
            const F q = n == W ? load_as<DType::s8>(at) : load_first<DType::s8>(at, n);
            return (q - set(static_cast<float>(zero_point))) * set(scale);
        }
        case DType::s32: return n == W ? load_as<DType::s32>(at) : load_first<DType::s32>(at, n);
    }
    return zero();
}

PAREDOWN_INLINE F quantise(F v, float inverse_scale, int32_t zero_point) {
    return nearest(v * set(inverse_scale)) + set(static_cast<float>(zero_point));
}

// What is to be stored for v: itself, or units of the 8-bit output.
template <DType T>
PAREDOWN_INLINE F in_units(F v, float inverse_scale, int32_t zero_point) {
    if constexpr (T == DType::u8 || T == DType::s8) return quantise(v, inverse_scale, zero_point);
    return v;
}

template <DType T>
PAREDOWN_INLINE void store_n(void* p, F v, int n) {
    if (n == W)
        store_as<T>(p, v);
    else
        store_first<T>(p, v, n);
}

template <DType T>
PAREDOWN_INLINE F load_n(const void* p, int64_t i, int n) {
    const char* at = static_cast<const char*>(p) + i * static_cast<int64_t>(size_of(T));
    return n == W ? load_as<T>(at) : load_first<T>(at, n);
}

// Two vectors side by side.
template <DType T>
PAREDOWN_INLINE void store_pair(void* p, F low, F high) {
#ifdef __AVX512BF16__
    if constexpr (T == DType::bf16) {
        _mm512_storeu_si512(p, reinterpret_cast<I>(_mm512_cvtne2ps_pbh(high, low)));
        return;
    }
#endif
    store_as<T>(p, low);
    store_as<T>(static_cast<char*>(p) + W * static_cast<int64_t>(size_of(T)), high);
}

PAREDOWN_INLINE void store_value(void* p, DType t, int64_t i, F v, int n, float inverse_scale,
                                 int32_t zero_point) {
    char* at = static_cast<char*>(p) + i * static_cast<int64_t>(size_of(t));
    switch (t) {
        case DType::f32: store_n<DType::f32>(at, v, n); break;
        case DType::bf16: store_n<DType::bf16>(at, v, n); break;
        case DType::u8: store_n<DType::u8>(at, quantise(v, inverse_scale, zero_point), n); break;
        case DType::s8: store_n<DType::s8>(at, quantise(v, inverse_scale, zero_point), n); break;
        case DType::s32: break;
    }
}

}  // namespace
}  // namespace paredown::engine
