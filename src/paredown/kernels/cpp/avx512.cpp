// AVX-512 F + BW + DQ + VL: 32 registers of 16 floats. Compiled with -mavx512f and friends.
#include <immintrin.h>

#include "table.hpp"

namespace paredown {
namespace {

constexpr int kChains = 16;

// The headers' own reductions add as signed numbers, whose overflow is undefined.
uint64_t sum64(__m512i v) {
    alignas(64) uint64_t lane[8];
    _mm512_store_si512(lane, v);
    uint64_t sum = 0;
    for (uint64_t x : lane) sum += x;
    return sum;
}

int64_t sum32(__m512i v) {
    alignas(64) int32_t lane[16];
    _mm512_store_si512(lane, v);
    int64_t sum = 0;
    for (int32_t x : lane) sum += x;
    return sum;
}

uint64_t peak_f32(uint64_t blocks, double* sink) {
    __m512 a = _mm512_set1_ps(0.999F), b = _mm512_set1_ps(0.001F), x[kChains];
    asm volatile("" : "+v"(a), "+v"(b));
    for (auto& v : x) v = b;
    for (uint64_t block = 0; block < blocks; ++block)
        for (int i = 0; i < 16; ++i)
            for (auto& v : x) v = _mm512_fmadd_ps(v, a, b);
    for (auto& v : x) *sink += _mm512_reduce_add_ps(v);
    return blocks * 16 * kChains * 16;
}

uint64_t peak_f64(uint64_t blocks, double* sink) {
    __m512d a = _mm512_set1_pd(0.999), b = _mm512_set1_pd(0.001), x[kChains];
    asm volatile("" : "+v"(a), "+v"(b));
    for (auto& v : x) v = b;
    for (uint64_t block = 0; block < blocks; ++block)
        for (int i = 0; i < 16; ++i)
            for (auto& v : x) v = _mm512_fmadd_pd(v, a, b);
    for (auto& v : x) *sink += _mm512_reduce_add_pd(v);
    return blocks * 16 * kChains * 8;
}

uint64_t peak_i8(uint64_t blocks, double* sink) {
    __m512i a = _mm512_set1_epi16(3), b = _mm512_set1_epi16(-2), x[kChains];
    for (auto& v : x) v = _mm512_setzero_si512();
    for (uint64_t block = 0; block < blocks; ++block)
        for (int i = 0; i < 16; ++i)
            for (auto& v : x) {
                asm volatile("" : "+v"(a));  // else the product is computed once for all
                v = _mm512_add_epi32(v, _mm512_madd_epi16(a, b));
            }
    for (auto& v : x) *sink += static_cast<double>(sum32(v));
    return blocks * 16 * kChains * 32;
}

uint64_t elementwise(uint64_t blocks, double* sink) {
    __m512 a = _mm512_set1_ps(0.5F), x[kChains];
    asm volatile("" : "+v"(a));
    for (auto& v : x) v = a;
    for (uint64_t block = 0; block < blocks; ++block)
        for (int i = 0; i < 8; ++i) {
            for (auto& v : x) v = _mm512_add_ps(v, a);
            for (auto& v : x) v = _mm512_mul_ps(v, a);
        }
    for (auto& v : x) *sink += _mm512_reduce_add_ps(v);
    return blocks * 16 * kChains * 16;
}

float dot_f32(const float* a, const float* b, size_t n) {
    __m512 s = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 16) {
        const size_t left = n - i;
        const __mmask16 m = left >= 16 ? 0xFFFF : static_cast<__mmask16>((1U << left) - 1);
        s = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(m, a + i), _mm512_maskz_loadu_ps(m, b + i), s);
    }
    return _mm512_reduce_add_ps(s);
}

int32_t dot_i8(const uint8_t* a, const int8_t* b, size_t n) {
    __m512i s = _mm512_setzero_si512();
    for (size_t i = 0; i < n; i += 32) {
        const size_t left = n - i;
        const __mmask32 m = left >= 32 ? 0xFFFFFFFFU : (1U << left) - 1;
        const __m512i wa = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(m, a + i));
        const __m512i wb = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(m, b + i));
        s = _mm512_add_epi32(s, _mm512_madd_epi16(wa, wb));
    }
    return static_cast<int32_t>(sum32(s));
}

uint64_t read(const uint8_t* p, size_t bytes) {
    __m512i s[8];
    for (auto& v : s) v = _mm512_setzero_si512();
    size_t i = 0;
    for (; i + 512 <= bytes; i += 512)
        for (int j = 0; j < 8; ++j)
            s[j] = _mm512_add_epi64(s[j], _mm512_loadu_si512(p + i + 64 * j));
    for (int j = 1; j < 8; ++j) s[0] = _mm512_add_epi64(s[0], s[j]);
    return sum64(s[0]) + read_tail(p + i, bytes - i);
}

void write(uint8_t* p, size_t bytes, uint8_t value) {
    const __m512i v = _mm512_set1_epi8(static_cast<char>(value));
    size_t i = 0;
    for (; i + 64 <= bytes; i += 64) _mm512_storeu_si512(p + i, v);
    for (; i < bytes; ++i) p[i] = value;
}

void copy(uint8_t* to, const uint8_t* from, size_t bytes) {
    size_t i = 0;
    for (; i + 64 <= bytes; i += 64) _mm512_storeu_si512(to + i, _mm512_loadu_si512(from + i));
    for (; i < bytes; ++i) to[i] = from[i];
}

}  // namespace

Table avx512_table(const Table& base) {
    Table t = base;
    t.name = "avx512";
    t.peak_f32 = peak_f32;
    t.peak_f64 = peak_f64;
    t.peak_i8 = peak_i8;
    t.elementwise = elementwise;
    t.dot_f32 = dot_f32;
    t.dot_i8 = dot_i8;
    t.read = read;
    t.write = write;
    t.copy = copy;
    return t;
}

}  // namespace paredown
