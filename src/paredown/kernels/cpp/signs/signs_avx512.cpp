// Products of signs with AVX-512 and VPOPCNTDQ: eight channels side by side, a word of each.
#include <immintrin.h>

#include "along.hpp"

namespace paredown::signs {
namespace {

constexpr int64_t kWide = 8;  // channels in a vector
constexpr int64_t kTall = 4;  // rows that share a load of weights

void pack(const float* x, int64_t rows, int64_t n, const float* threshold, uint64_t* out) {
    const int64_t words = (n + 63) / 64;
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t word = 0; word < words; ++word) {
            uint64_t bits = 0;
            for (int64_t part = 0; part < 4; ++part) {
                const int64_t i = word * 64 + part * 16, left = n - i;
                if (left <= 0) break;
                const auto there = static_cast<__mmask16>(left >= 16 ? 0xFFFF : (1U << left) - 1);
                const __m512 v = _mm512_maskz_loadu_ps(there, x + row * n + i);
                const __m512 t = _mm512_maskz_loadu_ps(there, threshold + i);
                bits |= static_cast<uint64_t>(_mm512_mask_cmp_ps_mask(there, v, t, _CMP_LT_OQ)) << (16 * part);
            }
            out[row * words + word] = bits;
        }
}

int64_t units(const Product& p) { return (p.rows + kTall - 1) / kTall; }

int64_t groups(const Product& p) { return (p.channels + kWide - 1) / kWide; }

size_t scratch(const Product& p) { return static_cast<size_t>(groups(p) * p.words) * sizeof(__m512i); }

// [group of channels][word][channel]
void interleave(const Product& p, uint64_t* to) {
    for (int64_t group = 0; group < groups(p); ++group)
        for (int64_t word = 0; word < p.words; ++word)
            for (int64_t i = 0; i < kWide; ++i) {
                const int64_t c = group * kWide + i;
                *to++ = c < p.channels ? p.w[c * p.words + word] : 0;
            }
}

template <int Rows>
void rows_of(const Product& p, int64_t first, const uint64_t* w) {
    const __m256i n = _mm256_set1_epi32(p.n);
    const uint64_t* a = p.a + first * p.words;
    for (int64_t group = 0; group < groups(p); ++group) {
        __m512i differ[Rows];
        for (auto& d : differ) d = _mm512_setzero_si512();
        for (int64_t word = 0; word < p.words; ++word, w += kWide) {
            const __m512i weights = _mm512_load_si512(w);
            for (int r = 0; r < Rows; ++r) {
                const __m512i x = _mm512_set1_epi64(static_cast<int64_t>(a[r * p.words + word]));
                differ[r] = _mm512_add_epi64(differ[r], _mm512_popcnt_epi64(_mm512_xor_si512(weights, x)));
            }
        }
        const int64_t c = group * kWide, left = p.channels - c;
        const auto there = static_cast<__mmask8>(left >= kWide ? 0xFF : (1U << left) - 1);
        for (int r = 0; r < Rows; ++r) {
            const __m256i twice = _mm256_slli_epi32(_mm512_cvtepi64_epi32(differ[r]), 1);
            const __m256i sum = _mm256_sub_epi32(n, twice);
            const int64_t at = (first + r) * p.channels + c;
            if (p.out.sums != nullptr) {
                _mm256_mask_storeu_epi32(p.out.sums + at, there, sum);
            } else {
                const __m256 gain = _mm256_maskz_loadu_ps(there, p.out.gain + c);
                const __m256 offset = _mm256_maskz_loadu_ps(there, p.out.offset + c);
                const __m256 y = _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), gain), offset);
                _mm256_mask_storeu_ps(p.out.scaled + at, there, y);
            }
        }
    }
}

void product(const Product& p, int64_t begin, int64_t end, void* scratch) {
    auto* w = static_cast<uint64_t*>(scratch);
    interleave(p, w);
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t first = unit * kTall;
        switch (p.rows - first < kTall ? p.rows - first : kTall) {
            case 1: rows_of<1>(p, first, w); break;
            case 2: rows_of<2>(p, first, w); break;
            case 3: rows_of<3>(p, first, w); break;
            default: rows_of<4>(p, first, w); break;
        }
    }
}

struct Wide {
    using V = uint64_t __attribute__((vector_size(64)));
    static constexpr int64_t lanes = 8;
    static V splat(uint64_t value) { return V{} + value; }
    static V odd(V a, V b, V c) {
        return reinterpret_cast<V>(_mm512_ternarylogic_epi64(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b),
                                                             reinterpret_cast<__m512i>(c), 0x96));
    }
    static V most(V a, V b, V c) {
        return reinterpret_cast<V>(_mm512_ternarylogic_epi64(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b),
                                                             reinterpret_cast<__m512i>(c), 0xE8));
    }

    // The counts of 64 rows, one lane of the slices, as two vectors of 16 bits.
    static void counts(const V* slice, int slices, int64_t lane, __m512i* halves) {
        const auto* word = reinterpret_cast<const uint64_t*>(slice) + lane;
        __m512i low = _mm512_setzero_si512(), high = low;
        const int first = slices < 8 ? slices : 8;
        for (int k = 0; k < first; ++k)
            low = _mm512_mask_add_epi8(low, word[k * lanes], low, _mm512_set1_epi8(static_cast<char>(1 << k)));
        for (int k = 8; k < slices; ++k)
            high = _mm512_mask_add_epi8(high, word[k * lanes], high, _mm512_set1_epi8(static_cast<char>(1 << (k - 8))));
        halves[0] = _mm512_or_si512(
            _mm512_cvtepu8_epi16(_mm512_castsi512_si256(low)),
            _mm512_slli_epi16(_mm512_cvtepu8_epi16(_mm512_castsi512_si256(high)), 8));
        halves[1] = _mm512_or_si512(
            _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(low, 1)),
            _mm512_slli_epi16(_mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(high, 1)), 8));
    }

    template <typename Store>
    static void each(const V* slice, int slices, uint32_t more, uint32_t mask, int32_t n, const Store& store) {
        const __m512i add = _mm512_set1_epi32(static_cast<int32_t>(more));
        const __m512i keep = _mm512_set1_epi32(static_cast<int32_t>(mask)), all = _mm512_set1_epi32(n);
        for (int64_t lane = 0; lane < lanes; ++lane) {
            __m512i halves[2];
            counts(slice, slices, lane, halves);
            for (int64_t part = 0; part < 4; ++part) {
                const __m512i half = halves[part / 2];
                const __m256i some = part % 2 ? _mm512_extracti64x4_epi64(half, 1) : _mm512_castsi512_si256(half);
                __m512i count = _mm512_cvtepu16_epi32(some);
                count = _mm512_and_si512(_mm512_add_epi32(count, add), keep);
                store(lane * 64 + part * 16, _mm512_sub_epi32(all, _mm512_slli_epi32(count, 1)));
            }
        }
    }

    static void integers(const V* slice, int slices, uint32_t more, uint32_t mask, int32_t n, int32_t* out) {
        each(slice, slices, more, mask, n, [&](int64_t at, __m512i sum) { _mm512_storeu_si512(out + at, sum); });
    }

    static void floats(const V* slice, int slices, uint32_t more, uint32_t mask, int32_t n, float gain,
                       float offset, float* out) {
        const __m512 g = _mm512_set1_ps(gain), o = _mm512_set1_ps(offset);
        each(slice, slices, more, mask, n, [&](int64_t at, __m512i sum) {
            _mm512_storeu_ps(out + at, _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), g), o));
        });
    }
};

}  // namespace

Kernels avx512_kernels(const Kernels& base) {
    Kernels t = base;
    t.pack = pack;
    t.product = {units, scratch, product};
    t.sliced = sliced_entry<Wide>();
    t.gathers = gathers_entry();
    return t;
}

}  // namespace paredown::signs
