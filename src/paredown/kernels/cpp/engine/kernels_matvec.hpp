// Weight-only quantised products for few rows, bound by the reading of the weights.
//
// Lanes run over outputs, so that no sum crosses lanes: [panel of W outputs][k][lane], a byte each, or two
// neighbours of k in one byte (values plus 8). Scales follow, then zero points: [panel][group][lane]. Groups
// are padded to four steps of k with zeros. A zero point comes off at the end of its group, times the sum of
// the group's x.
#pragma once
#include "kernels_finish.hpp"
#include "kernels_spans.hpp"

namespace paredown::engine {
namespace {

constexpr int64_t kSteps = 4;
// Weights pass by once and come from memory: so many bytes on the way are what a core needs to keep it busy.
constexpr int64_t kWeightsAhead = 8192;

struct MatvecLayout {
    int64_t panels, groups, group_steps, steps, panel_bytes, scales_at, zeros_at;
    explicit MatvecLayout(const Matvec& a)
        : panels(ceil_div(a.n, W)), groups(ceil_div(a.k, a.group)),
          group_steps(round_up(least(a.group, a.k), kSteps)), steps(groups * group_steps),
          panel_bytes(steps * W * a.bits / 8), scales_at(round_up(panels * panel_bytes, 64)),
          zeros_at(scales_at + panels * groups * W * 4) {}
    int64_t bytes() const { return zeros_at + panels * groups * W; }
    // Of a row of x in scratch, in floats: its values, then their sum for each group.
    int64_t row() const { return steps + groups; }
};

inline size_t packed_matvec_size(const Matvec& a) {
    return static_cast<size_t>(MatvecLayout(a).bytes());
}

// Scales and zero points (with `raised` added) by panel, group and lane; zeros where a panel is not full.
template <typename Layout>
void pack_grid(const Matvec& a, const Layout& l, const Grid& grid, int raised, uint8_t* to) {
    std::memset(to + l.scales_at, 0, static_cast<size_t>(l.bytes() - l.scales_at));
    auto* scales = reinterpret_cast<float*>(to + l.scales_at);
    for (int64_t n = 0; n < a.n; ++n)
        for (int64_t g = 0; g < l.groups; ++g) {
            const int64_t from = n * l.groups + g, at = (n / W * l.groups + g) * W + n % W;
            scales[at] = grid.scales[from];
            to[l.zeros_at + at] = static_cast<uint8_t>(grid.zero(static_cast<size_t>(from)) + raised);
        }
}

inline void pack_matvec(const Matvec& a, const int8_t* q, const Grid& grid, void* to) {
    const MatvecLayout l(a);
    auto* bytes = static_cast<uint8_t*>(to);
    std::memset(to, a.bits == 4 ? 0x88 : 0, static_cast<size_t>(l.scales_at));
    pack_grid(a, l, grid, 0, bytes);
    for (int64_t n = 0; n < a.n; ++n) {
        const int64_t panel = n / W, lane = n % W;
        for (int64_t k = 0; k < a.k; ++k) {
            const int64_t step = k / a.group * l.group_steps + k % a.group;
            const int8_t value = q[n * a.k + k];
            if (a.bits == 8) {
                bytes[panel * l.panel_bytes + step * W + lane] = static_cast<uint8_t>(value);
                continue;
            }
            uint8_t& cell = bytes[panel * l.panel_bytes + step / 2 * W + lane];
            const int shift = step % 2 * 4;
            cell = static_cast<uint8_t>((cell & ~(0xF << shift)) | ((value + 8) << shift));
        }
    }
}

// Steps k and k + 1 of the two-in-a-byte form.
PAREDOWN_INLINE void unpack_pair(const uint8_t* p, F& low, F& high) {
#ifdef __AVX512F__
    // The permutation looks at the low four bits of an index only: it is the table of values itself.
    const F table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    const I wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    low = _mm512_permutexvar_ps(wide, table);
    high = _mm512_permutexvar_ps(_mm512_srli_epi32(wide, 4), table);
#else
    const I wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    low = to_float(_mm256_and_si256(wide, set_int(15))) - set(8);
    high = to_float(_mm256_srli_epi32(wide, 4)) - set(8);
#endif
}

// `Rows` rows of x against one panel: sums[row * W + lane].
template <int Bits, int Rows>
void panel_sums(const MatvecLayout& l, const uint8_t* base, int64_t panel, const float* x, float* sums) {
    constexpr int chains = Rows == 1 ? 4 : 2;
    const int64_t stride = l.row(), grid = panel * l.groups * W;
    const uint8_t* w = base + panel * l.panel_bytes;
    const auto* scales = reinterpret_cast<const float*>(base + l.scales_at) + grid;
    const uint8_t* zeros = base + l.zeros_at + grid;
    const float* group_sum = x + l.steps;
    F total[Rows];
    for (F& t : total) t = zero();
    for (int64_t g = 0; g < l.groups; ++g, scales += W, zeros += W, ++group_sum) {
        F acc[Rows][chains];
        for (auto& row : acc)
            for (F& a : row) a = zero();
        for (int64_t k = 0; k < l.group_steps; k += kSteps, w += kSteps * W * Bits / 8, x += kSteps) {
            F q[kSteps];
            fetch(reinterpret_cast<const char*>(w) + kWeightsAhead);
            if constexpr (Bits == 8) {
                for (int i = 0; i < kSteps; ++i) q[i] = load_as<DType::s8>(w + i * W);
            } else {
                unpack_pair(w, q[0], q[1]);
                unpack_pair(w + W, q[2], q[3]);
            }
            for (int r = 0; r < Rows; ++r)
                for (int i = 0; i < kSteps; ++i)
                    acc[r][i % chains] = fma(q[i], set(x[r * stride + i]), acc[r][i % chains]);
        }
        const F below = zero() - load_as<DType::s8>(zeros);
        for (int r = 0; r < Rows; ++r) {
            F sum = acc[r][0] + acc[r][1];
            if constexpr (chains == 4) sum = sum + (acc[r][2] + acc[r][3]);
            sum = fma(below, set(group_sum[r * stride]), sum);
            total[r] = fma(sum, load(scales), total[r]);
        }
    }
    for (int r = 0; r < Rows; ++r) store(sums + r * W, total[r]);
}

inline int64_t matvec_units(const Matvec& a) { return ceil_div(a.n, W); }
inline size_t matvec_scratch(const Matvec& a) {
    return static_cast<size_t>((a.m * MatvecLayout(a).row() + 4 * W) * 4);
}

template <int Bits>
void matvec_bits(const Matvec& a, int64_t begin, int64_t end, void* scratch) {
    const MatvecLayout l(a);
    auto* x = static_cast<float*>(scratch);
    for (int64_t row = 0; row < a.m; ++row)
        for (int64_t g = 0; g < l.groups; ++g) {
            float* to = x + row * l.row() + g * l.group_steps;
            const int64_t count = least(a.group, a.k - g * a.group);
            load_span(a.x, a.x_type, row * a.ldx + g * a.group, count, 1, 0, to);
            for (int64_t i = count; i < l.group_steps; ++i) to[i] = 0;
            float sum = 0;
            for (int64_t i = 0; i < count; ++i) sum += to[i];
            x[row * l.row() + l.steps + g] = sum;
        }
    const auto* base = static_cast<const uint8_t*>(a.w);
    Finish f = make_finish<false>(a.ep, a.y, a.ldy);
    alignas(64) float sums[4 * kPanel] = {};
    for (int64_t panel = begin; panel < end; ++panel) {
        f.select(panel * W, static_cast<int>(least(W, a.n - panel * W)), nullptr, 0);
        for (int64_t row = 0; row < a.m; row += 4) {
            const float* from = x + row * l.row();
            const int rows = static_cast<int>(least(4, a.m - row));
            float out[4 * W];
            switch (rows) {
                case 1: panel_sums<Bits, 1>(l, base, panel, from, out); break;
                case 2: panel_sums<Bits, 2>(l, base, panel, from, out); break;
                case 3: panel_sums<Bits, 3>(l, base, panel, from, out); break;
                default: panel_sums<Bits, 4>(l, base, panel, from, out);
            }
            for (int r = 0; r < rows; ++r) std::memcpy(sums + r * kPanel, out + r * W, sizeof(float) * W);
            f.rows(f, reinterpret_cast<const char*>(sums), row, rows);
        }
    }
}

inline void matvec(const Matvec& a, int64_t begin, int64_t end, void* scratch) {
    if (a.bits == 4)
        matvec_bits<4>(a, begin, end, scratch);
    else
        matvec_bits<8>(a, begin, end, scratch);
}

}  // namespace
}  // namespace paredown::engine
