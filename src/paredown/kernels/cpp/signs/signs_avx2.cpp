// Products of signs with AVX2: four channels side by side, bits counted by a table of nibbles
// (Mula, Kurz & Lemire 2018, "Faster population counts using AVX2 instructions", arXiv:1611.07612).
#include <immintrin.h>

#include "along.hpp"

namespace paredown::signs {
namespace {

constexpr int64_t kWide = 4;   // channels in a vector
constexpr int64_t kTall = 4;   // rows that share a load of weights
constexpr int64_t kWords = 31;  // words whose bits a byte can count: 31 * 8 < 256

void pack(const float* x, int64_t rows, int64_t n, const float* threshold, uint64_t* out) {
    const int64_t words = (n + 63) / 64;
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t word = 0; word < words; ++word) {
            const float* from = x + row * n;
            uint64_t bits = 0;
            int64_t i = word * 64;
            for (int part = 0; part < 8 && i + 8 <= n; ++part, i += 8) {
                const __m256 less = _mm256_cmp_ps(_mm256_loadu_ps(from + i), _mm256_loadu_ps(threshold + i), _CMP_LT_OQ);
                bits |= static_cast<uint64_t>(static_cast<unsigned>(_mm256_movemask_ps(less))) << (8 * part);
            }
            for (; i < n && i < word * 64 + 64; ++i)
                bits |= static_cast<uint64_t>(from[i] < threshold[i]) << (i % 64);
            out[row * words + word] = bits;
        }
}

int64_t units(const Product& p) { return (p.rows + kTall - 1) / kTall; }

int64_t groups(const Product& p) { return (p.channels + kWide - 1) / kWide; }

size_t scratch(const Product& p) { return static_cast<size_t>(groups(p) * p.words) * sizeof(__m256i); }

void interleave(const Product& p, uint64_t* to) {
    for (int64_t group = 0; group < groups(p); ++group)
        for (int64_t word = 0; word < p.words; ++word)
            for (int64_t i = 0; i < kWide; ++i) {
                const int64_t c = group * kWide + i;
                *to++ = c < p.channels ? p.w[c * p.words + word] : 0;
            }
}

// Bits in each byte.
__m256i counts_of(__m256i v) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                           0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(v, nibble));
    return _mm256_add_epi8(low, _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble)));
}

template <int Rows>
void rows_of(const Product& p, int64_t first, const uint64_t* w) {
    const uint64_t* a = p.a + first * p.words;
    for (int64_t group = 0; group < groups(p); ++group) {
        __m256i differ[Rows];
        for (auto& d : differ) d = _mm256_setzero_si256();
        for (int64_t start = 0; start < p.words; start += kWords) {
            const int64_t stop = start + kWords < p.words ? start + kWords : p.words;
            __m256i bytes[Rows];
            for (auto& b : bytes) b = _mm256_setzero_si256();
            for (int64_t word = start; word < stop; ++word, w += kWide) {
                const __m256i weights = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
                for (int r = 0; r < Rows; ++r) {
                    const __m256i x = _mm256_set1_epi64x(static_cast<int64_t>(a[r * p.words + word]));
                    bytes[r] = _mm256_add_epi8(bytes[r], counts_of(_mm256_xor_si256(weights, x)));
                }
            }
            for (int r = 0; r < Rows; ++r)
                differ[r] = _mm256_add_epi64(differ[r], _mm256_sad_epu8(bytes[r], _mm256_setzero_si256()));
        }
        for (int r = 0; r < Rows; ++r) {
            alignas(32) int64_t counted[kWide];
            _mm256_store_si256(reinterpret_cast<__m256i*>(counted), differ[r]);
            for (int64_t i = 0; i < kWide && group * kWide + i < p.channels; ++i) {
                const int64_t c = group * kWide + i, at = (first + r) * p.channels + c;
                const int32_t sum = p.n - 2 * static_cast<int32_t>(counted[i]);
                if (p.out.sums != nullptr)
                    p.out.sums[at] = sum;
                else
                    p.out.scaled[at] = static_cast<float>(sum) * p.out.gain[c] + p.out.offset[c];
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
    using V = uint64_t __attribute__((vector_size(32)));
    static constexpr int64_t lanes = 4;
    static V splat(uint64_t value) { return V{} + value; }
    static V odd(V a, V b, V c) { return a ^ b ^ c; }
    static V most(V a, V b, V c) { return (a & b) | (c & (a ^ b)); }

    // Bytes 1 << k where a row's bit is set, 32 rows.
    static __m256i spread(uint32_t bits, int k) {
        const __m256i from = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                              2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
        const __m256i own = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ULL));
        const __m256i all = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int32_t>(bits)), from);
        const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(all, own), own);
        return _mm256_and_si256(set, _mm256_set1_epi8(static_cast<char>(1 << k)));
    }

    template <typename Store>
    static void each(const V* slice, int slices, uint32_t more, uint32_t mask, int32_t n, const Store& store) {
        const __m256i add = _mm256_set1_epi32(static_cast<int32_t>(more));
        const __m256i keep = _mm256_set1_epi32(static_cast<int32_t>(mask)), all = _mm256_set1_epi32(n);
        const auto* bytes = reinterpret_cast<const char*>(slice);
        for (int64_t half = 0; half < 2 * lanes; ++half) {
            __m256i low = _mm256_setzero_si256(), high = low;
            for (int k = 0; k < slices; ++k) {
                uint32_t bits = 0;
                std::memcpy(&bits, bytes + (k * 2 * lanes + half) * 4, sizeof bits);
                if (k < 8)
                    low = _mm256_or_si256(low, spread(bits, k));
                else
                    high = _mm256_or_si256(high, spread(bits, k - 8));
            }
            alignas(32) uint8_t lows[32], highs[32];
            _mm256_store_si256(reinterpret_cast<__m256i*>(lows), low);
            _mm256_store_si256(reinterpret_cast<__m256i*>(highs), high);
            for (int64_t part = 0; part < 4; ++part) {
                const auto wide = [&](const uint8_t* from) {
                    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8 * part)));
                };
                __m256i count = _mm256_or_si256(wide(lows), _mm256_slli_epi32(wide(highs), 8));
                count = _mm256_and_si256(_mm256_add_epi32(count, add), keep);
                store(half * 32 + part * 8, _mm256_sub_epi32(all, _mm256_slli_epi32(count, 1)));
            }
        }
    }

    static void integers(const V* slice, int slices, uint32_t more, uint32_t mask, int32_t n, int32_t* out) {
        each(slice, slices, more, mask, n, [&](int64_t at, __m256i sum) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + at), sum);
        });
    }

    static void floats(const V* slice, int slices, uint32_t more, uint32_t mask, int32_t n, float gain,
                       float offset, float* out) {
        const __m256 g = _mm256_set1_ps(gain), o = _mm256_set1_ps(offset);
        each(slice, slices, more, mask, n, [&](int64_t at, __m256i sum) {
            _mm256_storeu_ps(out + at, _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), g), o));
        });
    }
};

}  // namespace

Kernels avx2_kernels(const Kernels& base) {
    Kernels t = base;
    t.pack = pack;
    t.product = {units, scratch, product};
    t.sliced = sliced_entry<Wide>();
    t.gathers = gathers_entry();
    return t;
}

}  // namespace paredown::signs
