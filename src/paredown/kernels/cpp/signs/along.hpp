// Channels along a spanning tree, for any width of vector: 64 positions to a word, counts in bit slices.
//
// Where channel k differs from its parent j in the inputs D, it disagrees with an input where j agreed:
// q_k = q_j + 2 s - |D| for the disagreements q over all inputs and s over D. Counts of 64 positions are held
// as slices, bit b of all counts in one word; inputs are added eight at a time by carry-save adders
// (Harley & Seal). The constants |D| are left out until slices are turned into integers: all is modulo 2^B.
#pragma once
#include <cstring>

#include "signs.hpp"

namespace paredown::signs {
namespace {

constexpr int kMostSlices = 32;

inline int bits_of(int64_t value) {
    int bits = 0;
    while (value >> bits) ++bits;
    return bits;
}

inline int slices_of(const Along& p) {
    const int bits = bits_of(p.n);
    return bits < 4 ? 4 : bits;
}

// P: what a level has. V is its vector of `lanes` words; row r of a block is bit r % 64 of lane r / 64.
template <typename P>
struct Slices {
    using V = typename P::V;
    static constexpr int64_t kRows = 64 * P::lanes;

    static int64_t columns(const Along& p) { return p.words * 64; }

    static int64_t units(const Along& p) { return (p.rows + kRows - 1) / kRows; }

    // Planes of all inputs and two constant ones, slices of all channels, one block of a channel's results.
    static size_t scratch(const Along& p) {
        return static_cast<size_t>(columns(p) + 2 + p.channels * slices_of(p)) * sizeof(V) +
               static_cast<size_t>(kRows) * 4;
    }

    static void full_add(V& sum, V& carry, V a, V b) {
        const V was = sum;
        sum = P::odd(was, a, b);
        carry = P::most(was, a, b);
    }

    // Bit (row k, column b) of each lane goes to (row b, column k).
    static void transpose(V* v) {
        uint64_t mask = 0x00000000FFFFFFFFULL;
        for (int j = 32; j != 0; j >>= 1, mask ^= mask << j) {
            const V m = P::splat(mask);
            for (int k = 0; k < 64; k = ((k | j) + 1) & ~j) {
                const V t = ((v[k] >> j) ^ v[k | j]) & m;
                v[k | j] ^= t;
                v[k] ^= t << j;
            }
        }
    }

    static void planes(const Along& p, int64_t first, V* plane) {
        for (int64_t word = 0; word < p.words; ++word) {
            V* v = plane + word * 64;
            auto* to = reinterpret_cast<uint64_t*>(v);
            for (int64_t k = 0; k < 64; ++k)
                for (int64_t lane = 0; lane < P::lanes; ++lane) {
                    const int64_t row = first + lane * 64 + k;
                    to[k * P::lanes + lane] = row < p.rows ? p.a[row * p.words + word] : 0;
                }
            transpose(v);
        }
        plane[columns(p)] = P::splat(0);
        plane[columns(p) + 1] = P::splat(~uint64_t{0});
    }

    // Adds the planes of a list, each or its complement, to the slices s of counts.
    template <bool Not>
    static void add(const V* plane, const int32_t* list, int32_t length, V* s, int slices) {
        const auto at = [&](int32_t i) { return Not ? ~plane[list[i]] : plane[list[i]]; };
        for (int32_t i = 0; i < length; i += static_cast<int32_t>(kList)) {
            V a, b, c, d, carry;
            full_add(s[0], a, at(i), at(i + 1));
            full_add(s[0], b, at(i + 2), at(i + 3));
            full_add(s[1], c, a, b);
            full_add(s[0], a, at(i + 4), at(i + 5));
            full_add(s[0], b, at(i + 6), at(i + 7));
            full_add(s[1], d, a, b);
            full_add(s[2], carry, c, d);
            for (int k = 3; k < slices; ++k) {
                const V next = s[k] & carry;
                s[k] ^= carry;
                carry = next;
            }
        }
    }

    static void run(const Along& p, int64_t begin, int64_t end, void* scratch) {
        V* plane = static_cast<V*>(scratch);
        V* counts = plane + columns(p) + 2;
        const int slices = slices_of(p);
        auto* block = reinterpret_cast<int32_t*>(counts + p.channels * slices);
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t first = unit * kRows;
            planes(p, first, plane);
            for (int64_t i = 0; i < p.channels; ++i) {
                const Step& step = p.steps[i];
                V* mine = counts + step.channel * slices;
                V s[kMostSlices];
                int used = step.parent < 0 ? slices : bits_of(step.differs);
                used = used < 4 ? 4 : used > slices ? slices : used;
                for (int k = 0; k < used; ++k) s[k] = P::splat(0);
                const int32_t* list = p.lists + step.list;
                add<false>(plane, list, step.plus, s, used);
                add<true>(plane, list + step.plus, step.minus, s, used);
                if (step.parent < 0) {
                    for (int k = 0; k < slices; ++k) mine[k] = s[k];
                } else {
                    from_parent(counts + step.parent * slices, s, used, mine, slices);
                }
                finish(p, step, mine, slices, first, block);
            }
        }
    }

    // mine = parent + 2 s, modulo 2^slices.
    static void from_parent(const V* parent, const V* s, int used, V* mine, int slices) {
        mine[0] = parent[0];
        V carry = P::splat(0);
        for (int k = 1; k < slices; ++k) {
            V sum = parent[k];
            if (k <= used) {
                full_add(sum, carry, s[k - 1], carry);
            } else {
                const V next = sum & carry;
                sum ^= carry;
                carry = next;
            }
            mine[k] = sum;
        }
    }

    // n - 2 ((value of the slices - behind) mod 2^slices), for the rows of a block that there are.
    static void finish(const Along& p, const Step& step, const V* mine, int slices, int64_t first,
                       int32_t* block) {
        const uint32_t mask = (uint32_t{1} << slices) - 1;
        const uint32_t more = (0U - static_cast<uint32_t>(step.behind)) & mask;
        const int64_t left = p.rows - first, at = step.channel * p.rows + first;
        const bool whole = left >= kRows;
        if (p.out.sums != nullptr) {
            int32_t* to = p.out.sums + at;
            P::integers(mine, slices, more, mask, p.n, whole ? to : block);
            if (!whole) std::memcpy(to, block, static_cast<size_t>(left) * 4);
        } else {
            float* to = p.out.scaled + at;
            auto* in_between = reinterpret_cast<float*>(block);
            P::floats(mine, slices, more, mask, p.n, p.out.gain[step.channel], p.out.offset[step.channel],
                      whole ? to : in_between);
            if (!whole) std::memcpy(to, in_between, static_cast<size_t>(left) * 4);
        }
    }
};

template <typename P>
constexpr Entry<Along> sliced_entry() {
    return {Slices<P>::units, Slices<P>::scratch, Slices<P>::run};
}

// The tree position by position: inputs as integers, looked up by the lists.
struct Gathers {
    static constexpr int64_t kRows = 64;

    static int64_t units(const Along& p) { return (p.rows + kRows - 1) / kRows; }

    static size_t scratch(const Along& p) { return static_cast<size_t>(p.words * 64 + 2 + p.channels) * 4; }

    static void run(const Along& p, int64_t begin, int64_t end, void* scratch) {
        auto* x = static_cast<int32_t*>(scratch);
        const int64_t columns = p.words * 64;
        int32_t* sums = x + columns + 2;
        x[columns] = x[columns + 1] = 0;
        const int64_t last = end * kRows < p.rows ? end * kRows : p.rows;
        for (int64_t row = begin * kRows; row < last; ++row) {
            for (int64_t i = 0; i < columns; ++i)
                x[i] = 1 - 2 * static_cast<int32_t>((p.a[row * p.words + i / 64] >> (i % 64)) & 1);
            for (int64_t i = 0; i < p.channels; ++i) {
                const Step& step = p.steps[i];
                const int32_t* list = p.lists + step.list;
                int32_t more = 0;
                for (int32_t k = 0; k < step.plus; ++k) more += x[list[k]];
                for (int32_t k = 0; k < step.minus; ++k) more -= x[list[step.plus + k]];
                sums[step.channel] = step.parent < 0 ? more : sums[step.parent] + 2 * more;
            }
            for (int64_t c = 0; c < p.channels; ++c) {
                if (p.out.sums != nullptr)
                    p.out.sums[c * p.rows + row] = sums[c];
                else
                    p.out.scaled[c * p.rows + row] =
                        static_cast<float>(sums[c]) * p.out.gain[c] + p.out.offset[c];
            }
        }
    }
};

constexpr Entry<Along> gathers_entry() { return {Gathers::units, Gathers::scratch, Gathers::run}; }

}  // namespace
}  // namespace paredown::signs
