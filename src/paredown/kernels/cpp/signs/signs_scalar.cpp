// The readable reference of products of signs.
#include "along.hpp"

namespace paredown::signs {
namespace {

void pack(const float* x, int64_t rows, int64_t n, const float* threshold, uint64_t* out) {
    const int64_t words = (n + 63) / 64;
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t word = 0; word < words; ++word) {
            uint64_t bits = 0;
            for (int64_t i = word * 64; i < n && i < word * 64 + 64; ++i)
                bits |= static_cast<uint64_t>(x[row * n + i] < threshold[i]) << (i % 64);
            out[row * words + word] = bits;
        }
}

int64_t units(const Product& p) { return p.rows; }

size_t scratch(const Product&) { return 0; }

void product(const Product& p, int64_t begin, int64_t end, void*) {
    for (int64_t row = begin; row < end; ++row)
        for (int64_t c = 0; c < p.channels; ++c) {
            int32_t differ = 0;
            for (int64_t word = 0; word < p.words; ++word)
                differ += __builtin_popcountll(p.a[row * p.words + word] ^ p.w[c * p.words + word]);
            const int32_t sum = p.n - 2 * differ;
            const int64_t at = row * p.channels + c;
            if (p.out.sums != nullptr)
                p.out.sums[at] = sum;
            else
                p.out.scaled[at] = static_cast<float>(sum) * p.out.gain[c] + p.out.offset[c];
        }
}

struct Word {
    using V = uint64_t;
    static constexpr int64_t lanes = 1;
    static V splat(uint64_t value) { return value; }
    static V odd(V a, V b, V c) { return a ^ b ^ c; }
    static V most(V a, V b, V c) { return (a & b) | (c & (a ^ b)); }

    static int32_t value(const V* slice, int slices, int row, uint32_t more, uint32_t mask, int32_t n) {
        uint32_t count = 0;
        for (int k = 0; k < slices; ++k) count |= static_cast<uint32_t>((slice[k] >> row) & 1) << k;
        return n - 2 * static_cast<int32_t>((count + more) & mask);
    }

    static void integers(const V* slice, int slices, uint32_t more, uint32_t mask, int32_t n, int32_t* out) {
        for (int row = 0; row < 64; ++row) out[row] = value(slice, slices, row, more, mask, n);
    }

    static void floats(const V* slice, int slices, uint32_t more, uint32_t mask, int32_t n, float gain,
                       float offset, float* out) {
        for (int row = 0; row < 64; ++row)
            out[row] = static_cast<float>(value(slice, slices, row, more, mask, n)) * gain + offset;
    }
};

}  // namespace

Kernels scalar_kernels() {
    Kernels t;
    t.pack = pack;
    t.product = {units, scratch, product};
    t.sliced = sliced_entry<Word>();
    t.gathers = gathers_entry();
    return t;
}

}  // namespace paredown::signs
