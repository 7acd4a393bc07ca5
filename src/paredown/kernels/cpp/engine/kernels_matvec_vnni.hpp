// Products of few rows with 4-bit weights by VNNI: as floats (kernels_matvec.hpp) they would wait for the
// unpacking, not for memory.
//
// A row of activations becomes whole numbers of 24 bits (bf16: 16), with a scale for each group of k that has
// one for its weights anyway, held as signed bytes: x = s * (65536 c + 256 b + a). Weights stay unsigned
// (q + 8), their products with each byte are exact, and the zero point (raised by 8 too) times the sum of x
// comes off at the end of the group.
// So an x is off by up to 2^-24 (2^-16) of the largest of its group. A group with a NaN or an infinity gives NaN.
//
// [panel of W outputs][8 of k][lane][4 bytes]: byte j has k + j in its low and k + 4 + j in its high half.
// Scales and zero points follow as in kernels_matvec.hpp.
#pragma once
#include "kernels_matvec.hpp"

namespace paredown::engine {
namespace {

constexpr int64_t kNibbleSteps = 8, kNibbleBytes = 64;
// What the largest of a group becomes: with room for what its product rounds up to, or the last byte overflows.
constexpr float top_of(int bytes) { return bytes == 3 ? 127 * 65536 : 127 * 256; }
constexpr int bytes_of(DType x) { return x == DType::f32 ? 3 : 2; }

struct NibbleLayout {
    int64_t panels, groups, group_steps, steps, panel_bytes, scales_at, zeros_at;
    int planes;  // bytes of an activation
    explicit NibbleLayout(const Matvec& a)
        : panels(ceil_div(a.n, W)), groups(ceil_div(a.k, a.group)),
          group_steps(round_up(least(a.group, a.k), kNibbleSteps)), steps(groups * group_steps),
          panel_bytes(steps / kNibbleSteps * kNibbleBytes), scales_at(round_up(panels * panel_bytes, 64)),
          zeros_at(scales_at + panels * groups * W * 4), planes(bytes_of(a.x_type)) {}
    int64_t bytes() const { return zeros_at + panels * groups * W; }
    // Of a row in scratch: its lowest bytes, the next, then scale and sum for each group.
    int64_t ends_at() const { return planes * steps; }
    int64_t row_bytes() const { return round_up(ends_at() + groups * 8, 64); }
};

inline void pack_nibbles(const Matvec& a, const int8_t* q, const Grid& grid, void* to) {
    const NibbleLayout l(a);
    auto* bytes = static_cast<uint8_t*>(to);
    std::memset(to, 0, static_cast<size_t>(l.scales_at));
    pack_grid(a, l, grid, 8, bytes);
    for (int64_t n = 0; n < a.n; ++n) {
        const int64_t panel = n / W, lane = n % W;
        for (int64_t k = 0; k < a.k; ++k) {
            const int64_t step = k / a.group * l.group_steps + k % a.group, part = step % kNibbleSteps;
            uint8_t& cell =
                bytes[panel * l.panel_bytes + step / kNibbleSteps * kNibbleBytes + lane * 4 + part % 4];
            cell = static_cast<uint8_t>(cell | (q[n * a.k + k] + 8) << (part / 4 * 4));
        }
    }
}

// One row as some bytes for each value; `values` has room for a group.
inline void split_row(const Matvec& a, const NibbleLayout& l, int64_t row, float* values, char* to) {
    const float most_of_all = top_of(l.planes);
    auto* lowest = reinterpret_cast<int8_t*>(to);
    for (int64_t g = 0; g < l.groups; ++g, lowest += l.group_steps) {
        const int64_t count = least(a.group, a.k - g * a.group);
        for (int64_t i = count; i < l.group_steps; ++i) values[i] = 0;
        load_span(a.x, a.x_type, row * a.ldx + g * a.group, count, 1, 0, values);
        float top = 0, poison = 0;
        for (int64_t i = 0; i < l.group_steps; ++i) {
            const float size = values[i] < 0 ? -values[i] : values[i];
            top = size > top ? size : top;
            poison += values[i] * 0;
        }
        const float inverse = poison == 0 && top > 0 ? most_of_all / top : 0;
        int64_t sum = 0;
        for (int64_t i = 0; i < l.group_steps; ++i) {
            auto whole = inverse == 0 ? 0 : static_cast<int32_t>(std::nearbyintf(values[i] * inverse));
            sum += whole;
            for (int plane = 0; plane < l.planes; ++plane) {
                const int32_t rest = (whole + 128) >> 8;
                lowest[plane * l.steps + i] = static_cast<int8_t>(whole - rest * 256);
                whole = rest;
            }
        }
        const float ends[2] = {top / most_of_all + poison, static_cast<float>(sum)};
        std::memcpy(to + l.ends_at() + g * 8, ends, sizeof ends);
    }
}

PAREDOWN_INLINE I bytes_at(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, sizeof four);
    return set_int(four);
}

// `Rows` rows against one panel: sums[row * W + lane].
template <int Planes, int Rows>
void nibble_sums(const NibbleLayout& l, const uint8_t* base, int64_t panel, const char* x, float* sums) {
    const int64_t stride = l.row_bytes(), grid = panel * l.groups * W;
    const uint8_t* w = base + panel * l.panel_bytes;
    const auto* scales = reinterpret_cast<const float*>(base + l.scales_at) + grid;
    const uint8_t* zeros = base + l.zeros_at + grid;
    const I mask = _mm512_set1_epi8(15);
    F total[Rows];
    for (F& t : total) t = zero();
    for (int64_t g = 0; g < l.groups; ++g, scales += W, zeros += W) {
        constexpr int kChains = Rows == 1 ? 2 : 1;
        I acc[Rows][Planes][kChains];
        for (auto& row : acc)
            for (auto& plane : row)
                for (I& chain : plane) chain = set_int(0);
        const auto* at = reinterpret_cast<const int8_t*>(x) + g * l.group_steps;
        for (int64_t k = 0; k < l.group_steps; k += kNibbleSteps, w += kNibbleBytes, at += kNibbleSteps) {
            fetch(reinterpret_cast<const char*>(w) + kWeightsAhead);
            const I both = _mm512_loadu_si512(w);
            const I q[2] = {_mm512_and_si512(both, mask), _mm512_and_si512(_mm512_srli_epi16(both, 4), mask)};
            for (int r = 0; r < Rows; ++r)
                for (int plane = 0; plane < Planes; ++plane)
                    for (int i = 0; i < 2; ++i) {
                        I& sum = acc[r][plane][i % kChains];
                        sum = _mm512_dpbusd_epi32(sum, q[i], bytes_at(at + r * stride + plane * l.steps + 4 * i));
                    }
        }
        const F below = zero() - load_as<DType::s8>(zeros);
        for (int r = 0; r < Rows; ++r) {
            float ends[2];
            std::memcpy(ends, x + r * stride + l.ends_at() + g * 8, sizeof ends);
            F sum = below * set(ends[1]);
            float weight = 1;
            for (int plane = 0; plane < Planes; ++plane, weight *= 256) {
                I whole = acc[r][plane][0];
                if constexpr (kChains == 2) whole = add_int(whole, acc[r][plane][1]);
                sum = fma(to_float(whole), set(weight), sum);
            }
            total[r] = fma(sum * set(ends[0]), load(scales), total[r]);
        }
    }
    for (int r = 0; r < Rows; ++r) store(sums + r * W, total[r]);
}

template <int Planes>
void matvec_planes(const Matvec& a, int64_t begin, int64_t end, void* scratch) {
    const NibbleLayout l(a);
    auto* x = static_cast<char*>(scratch);
    const int64_t stride = l.row_bytes();
    auto* values = reinterpret_cast<float*>(x + a.m * stride);
    for (int64_t row = 0; row < a.m; ++row) split_row(a, l, row, values, x + row * stride);
    const auto* base = static_cast<const uint8_t*>(a.w);
    Finish f = make_finish<false>(a.ep, a.y, a.ldy);
    alignas(64) float sums[4 * kPanel] = {};
    for (int64_t panel = begin; panel < end; ++panel) {
        f.select(panel * W, static_cast<int>(least(W, a.n - panel * W)), nullptr, 0);
        for (int64_t row = 0; row < a.m; row += 4) {
            const int rows = static_cast<int>(least(4, a.m - row));
            float out[4 * W];
            switch (rows) {
                case 1: nibble_sums<Planes, 1>(l, base, panel, x + row * stride, out); break;
                case 2: nibble_sums<Planes, 2>(l, base, panel, x + row * stride, out); break;
                case 3: nibble_sums<Planes, 3>(l, base, panel, x + row * stride, out); break;
                default: nibble_sums<Planes, 4>(l, base, panel, x + row * stride, out);
            }
            for (int r = 0; r < rows; ++r) std::memcpy(sums + r * kPanel, out + r * W, sizeof(float) * W);
            f.rows(f, reinterpret_cast<const char*>(sums), row, rows);
        }
    }
}

inline void matvec_nibbles(const Matvec& a, int64_t begin, int64_t end, void* scratch) {
    (bytes_of(a.x_type) == 3 ? matvec_planes<3> : matvec_planes<2>)(a, begin, end, scratch);
}

// Weights of 4 bits; those of 8 stay with the table that this is added to.
struct Nibbles {
    static inline Kernels before;
    static size_t size(const Matvec& a) {
        return a.bits == 4 ? static_cast<size_t>(NibbleLayout(a).bytes()) : before.packed_matvec_size(a);
    }
    static void pack(const Matvec& a, const int8_t* q, const Grid& grid, void* to) {
        a.bits == 4 ? pack_nibbles(a, q, grid, to) : before.pack_matvec(a, q, grid, to);
    }
    static size_t scratch(const Matvec& a) {
        if (a.bits != 4) return before.matvec.scratch(a);
        const NibbleLayout l(a);
        return static_cast<size_t>(a.m * l.row_bytes() + l.group_steps * 4 + 64);
    }
    static void run(const Matvec& a, int64_t begin, int64_t end, void* scratch) {
        (a.bits == 4 ? matvec_nibbles : before.matvec.run)(a, begin, end, scratch);
    }
    static void add(Kernels& t) {
        before = t;
        t.packed_matvec_size = size;
        t.pack_matvec = pack;
        t.matvec.scratch = scratch;
        t.matvec.run = run;
    }
};

}  // namespace
}  // namespace paredown::engine
