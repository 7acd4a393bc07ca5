// AVX-512 VNNI: 64 int8 multiply-accumulates per instruction. Compiled with -mavx512vnni.
#include <immintrin.h>

#include "table.hpp"

namespace paredown {
namespace {

constexpr int kChains = 16;

int64_t sum32(__m512i v) {
    alignas(64) int32_t lane[16];
    _mm512_store_si512(lane, v);
    int64_t sum = 0;
    for (int32_t x : lane) sum += x;
    return sum;
}

uint64_t peak_i8(uint64_t blocks, double* sink) {
    __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2), x[kChains];
    asm volatile("" : "+v"(a), "+v"(b));
    for (auto& v : x) v = _mm512_setzero_si512();
    for (uint64_t block = 0; block < blocks; ++block)
        for (int i = 0; i < 16; ++i)
            for (auto& v : x) v = _mm512_dpbusd_epi32(v, a, b);
    for (auto& v : x) *sink += static_cast<double>(sum32(v));
    return blocks * 16 * kChains * 64;
}

int32_t dot_i8(const uint8_t* a, const int8_t* b, size_t n) {
    __m512i s = _mm512_setzero_si512();
    for (size_t i = 0; i < n; i += 64) {
        const size_t left = n - i;
        const __mmask64 m = left >= 64 ? ~0ULL : (1ULL << left) - 1;
        s = _mm512_dpbusd_epi32(s, _mm512_maskz_loadu_epi8(m, a + i),
                                _mm512_maskz_loadu_epi8(m, b + i));
    }
    return static_cast<int32_t>(sum32(s));
}

}  // namespace

Table avx512_vnni_table(const Table& base) {
    Table t = base;
    t.name = "avx512_vnni";
    t.peak_i8 = peak_i8;
    t.dot_i8 = dot_i8;
    return t;
}

}  // namespace paredown
