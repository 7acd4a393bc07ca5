// AVX-512 BF16: 32 bfloat16 multiply-accumulates per instruction. Compiled with -mavx512bf16.
#include <immintrin.h>

#include "table.hpp"

namespace paredown {
namespace {

constexpr int kChains = 16;

__m512bh as_bf16(__m512i v) { return reinterpret_cast<__m512bh>(v); }

uint64_t peak_bf16(uint64_t blocks, double* sink) {
    // 0x3A83 is 0.001 in bfloat16: sums stay far from overflow and from denormals.
    __m512i a = _mm512_set1_epi16(0x3A83), b = a;
    __m512 x[kChains];
    asm volatile("" : "+v"(a), "+v"(b));
    for (auto& v : x) v = _mm512_setzero_ps();
    for (uint64_t block = 0; block < blocks; ++block)
        for (int i = 0; i < 16; ++i)
            for (auto& v : x) v = _mm512_dpbf16_ps(v, as_bf16(a), as_bf16(b));
    for (auto& v : x) *sink += _mm512_reduce_add_ps(v);
    return blocks * 16 * kChains * 32;
}

float dot_bf16(const uint16_t* a, const uint16_t* b, size_t n) {
    __m512 s = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 32) {
        const size_t left = n - i;
        const __mmask32 m = left >= 32 ? 0xFFFFFFFFU : (1U << left) - 1;
        s = _mm512_dpbf16_ps(s, as_bf16(_mm512_maskz_loadu_epi16(m, a + i)),
                             as_bf16(_mm512_maskz_loadu_epi16(m, b + i)));
    }
    return _mm512_reduce_add_ps(s);
}

}  // namespace

Table avx512_bf16_table(const Table& base) {
    Table t = base;
    t.peak_bf16 = peak_bf16;
    t.dot_bf16 = dot_bf16;
    return t;
}

}  // namespace paredown
