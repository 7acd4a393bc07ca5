// AVX2 + FMA: 16 registers of 8 floats. Compiled with -mavx2 -mfma.
#include <immintrin.h>

#include "table.hpp"

namespace paredown {
namespace {

float sum8(__m256 v) {
    alignas(32) float lane[8];
    _mm256_store_ps(lane, v);
    float sum = 0;
    for (float x : lane) sum += x;
    return sum;
}

int64_t sum8(__m256i v) {
    alignas(32) int32_t lane[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lane), v);
    int64_t sum = 0;
    for (int32_t x : lane) sum += x;
    return sum;
}

// Twelve chains cover the latency of two FMA units and leave registers for the operands.
constexpr int kChains = 12;

uint64_t peak_f32(uint64_t blocks, double* sink) {
    __m256 a = _mm256_set1_ps(0.999F), b = _mm256_set1_ps(0.001F), x[kChains];
    asm volatile("" : "+x"(a), "+x"(b));
    for (auto& v : x) v = b;
    for (uint64_t block = 0; block < blocks; ++block)
        for (int i = 0; i < 16; ++i)
            for (auto& v : x) v = _mm256_fmadd_ps(v, a, b);
    for (auto& v : x) *sink += sum8(v);
    return blocks * 16 * kChains * 8;
}

uint64_t peak_f64(uint64_t blocks, double* sink) {
    __m256d a = _mm256_set1_pd(0.999), b = _mm256_set1_pd(0.001), x[kChains];
    asm volatile("" : "+x"(a), "+x"(b));
    for (auto& v : x) v = b;
    for (uint64_t block = 0; block < blocks; ++block)
        for (int i = 0; i < 16; ++i)
            for (auto& v : x) v = _mm256_fmadd_pd(v, a, b);
    for (auto& v : x) *sink += _mm256_cvtsd_f64(v);
    return blocks * 16 * kChains * 4;
}

// int8 without VNNI, exactly: operands widened to 16 bit, pairs multiplied and added.
uint64_t peak_i8(uint64_t blocks, double* sink) {
    __m256i a = _mm256_set1_epi16(3), b = _mm256_set1_epi16(-2), x[kChains];
    for (auto& v : x) v = _mm256_setzero_si256();
    for (uint64_t block = 0; block < blocks; ++block)
        for (int i = 0; i < 16; ++i)
            for (auto& v : x) {
                asm volatile("" : "+x"(a));  // else the product is computed once for all
                v = _mm256_add_epi32(v, _mm256_madd_epi16(a, b));
            }
    for (auto& v : x) *sink += static_cast<double>(sum8(v));
    return blocks * 16 * kChains * 16;
}

uint64_t elementwise(uint64_t blocks, double* sink) {
    __m256 a = _mm256_set1_ps(0.5F), x[kChains];
    asm volatile("" : "+x"(a));
    for (auto& v : x) v = a;
    for (uint64_t block = 0; block < blocks; ++block)
        for (int i = 0; i < 8; ++i) {
            for (auto& v : x) v = _mm256_add_ps(v, a);
            for (auto& v : x) v = _mm256_mul_ps(v, a);
        }
    for (auto& v : x) *sink += sum8(v);
    return blocks * 16 * kChains * 8;
}

float dot_f32(const float* a, const float* b, size_t n) {
    __m256 s0 = _mm256_setzero_ps(), s1 = s0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        s0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s0);
        s1 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8), s1);
    }
    float sum = sum8(_mm256_add_ps(s0, s1));
    for (; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

int32_t dot_i8(const uint8_t* a, const int8_t* b, size_t n) {
    __m256i s = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256i wa = _mm256_cvtepu8_epi16(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(a + i)));
        const __m256i wb = _mm256_cvtepi8_epi16(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i)));
        s = _mm256_add_epi32(s, _mm256_madd_epi16(wa, wb));
    }
    auto sum = static_cast<int32_t>(sum8(s));
    for (; i < n; ++i) sum += int32_t(a[i]) * int32_t(b[i]);
    return sum;
}

uint64_t read(const uint8_t* p, size_t bytes) {
    __m256i s[8];
    for (auto& v : s) v = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 256 <= bytes; i += 256)
        for (int j = 0; j < 8; ++j)
            s[j] = _mm256_add_epi64(
                s[j], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i + 32 * j)));
    for (int j = 1; j < 8; ++j) s[0] = _mm256_add_epi64(s[0], s[j]);
    alignas(32) uint64_t lane[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lane), s[0]);
    return lane[0] + lane[1] + lane[2] + lane[3] + read_tail(p + i, bytes - i);
}

void write(uint8_t* p, size_t bytes, uint8_t value) {
    const __m256i v = _mm256_set1_epi8(static_cast<char>(value));
    size_t i = 0;
    for (; i + 32 <= bytes; i += 32) _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + i), v);
    for (; i < bytes; ++i) p[i] = value;
}

void copy(uint8_t* to, const uint8_t* from, size_t bytes) {
    size_t i = 0;
    for (; i + 32 <= bytes; i += 32)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i),
                            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
    for (; i < bytes; ++i) to[i] = from[i];
}

}  // namespace

Table avx2_table(const Table& base) {
    Table t = base;
    t.name = "avx2";
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
