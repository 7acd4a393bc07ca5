// Keys and values of attention packed like weights (kernels_layout.hpp), and where that lies in scratch.
#pragma once
#include "kernels_product.hpp"
#include "kernels_spans.hpp"

namespace paredown::engine {
namespace {

constexpr int64_t kQueries = 256, kKeys = 512;

// Query rows of a unit. Each unit packs its keys and values, so a head is cut only where it is long, or
// where there are too few heads for threads to share.
inline int64_t queries_of(const Attention& a) { return a.batch * a.heads >= 4 ? kQueries : kQueries / 2; }

// 16 or 8 rows of four-byte cells, `stride` bytes apart, to columns of panels: to[step][lane].
PAREDOWN_INLINE void turn_cells(const char* from, int64_t stride, int64_t rows, int64_t cells, char* to,
                                int64_t to_stride) {
    int64_t cell = 0;
#ifdef __AVX512F__
    if (rows == 16)
        for (; cell + 16 <= cells; cell += 16) {
            I r[16], s[16];
            for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(from + i * stride + cell * 4);
            for (int i = 0; i < 16; i += 2) {
                s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
                s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
            }
            for (int i = 0; i < 16; i += 4)
                for (int j = 0; j < 2; ++j) {
                    r[i + 2 * j] = _mm512_unpacklo_epi64(s[i + j], s[i + j + 2]);
                    r[i + 2 * j + 1] = _mm512_unpackhi_epi64(s[i + j], s[i + j + 2]);
                }
            // r[4 q + c] holds columns c, c + 4, c + 8, c + 12 of rows 4 q to 4 q + 3, a quarter each.
            for (int c = 0; c < 4; ++c) {
                const I low = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
                const I high = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xDD);
                const I low2 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
                const I high2 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xDD);
                s[c] = _mm512_shuffle_i32x4(low, low2, 0x88);
                s[8 + c] = _mm512_shuffle_i32x4(low, low2, 0xDD);
                s[4 + c] = _mm512_shuffle_i32x4(high, high2, 0x88);
                s[12 + c] = _mm512_shuffle_i32x4(high, high2, 0xDD);
            }
            for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + (cell + i) * to_stride, s[i]);
        }
#endif
    for (; cell < cells; ++cell)
        for (int64_t row = 0; row < rows; ++row)
            std::memcpy(to + cell * to_stride + row * 4, from + row * stride + cell * 4, 4);
}

struct AttentionPlan {
    int64_t tile, panels, dim_panels, dim_bytes, tile_bytes;
    int64_t k_at, v_at, rows_at, q_at, scores_at, weights_at, out_at, stat_at, product_at;
    size_t scratch;
};

template <class P>
AttentionPlan attention_plan(const Attention& a) {
    AttentionPlan p;
    p.tile = least(round_up(most(a.kv_len, 1), kPanel), kKeys);
    p.panels = ceil_div(p.tile, kPanel);
    p.dim_panels = ceil_div(a.dim, kPanel);
    p.dim_bytes = round_up(a.dim * element_size(P::kSum), granule(P::kSum));
    p.tile_bytes = round_up(p.tile * element_size(P::kSum), granule(P::kSum));
    int64_t at = 0;
    const auto take = [&](int64_t bytes) {
        const int64_t here = at;
        at += round_up(bytes, 64);
        return here;
    };
    p.k_at = take(p.panels * p.dim_bytes * kPanel);
    p.v_at = take(p.dim_panels * p.tile_bytes * kPanel);
    p.rows_at = take(16 * p.dim_bytes);
    p.q_at = take(P::kBlock * p.dim_bytes);
    p.scores_at = take(p.panels * P::kBlock * kPanel * 4);
    p.weights_at = take(P::kBlock * p.tile_bytes);
    p.out_at = take(kQueries * p.dim_panels * kPanel * 4);
    p.stat_at = take(2 * kQueries * 4);
    p.product_at = take(P::kBlock * kPanel * 4);
    p.scratch = static_cast<size_t>(at);
    return p;
}

// Rows of queries and keys lie in the products' form already, with nothing to pad.
template <Sum S>
bool reads_in_place(const Attention& a, const AttentionPlan& p) {
    return in_place<S>(a.type) && a.dim * element_size(S) == p.dim_bytes;
}

// Keys [first, first + count) of one head as a panel of weights with k along the head's dimension.
template <Sum S>
void pack_keys(const Attention& a, const AttentionPlan& p, int64_t at, int64_t count, char* scratch) {
    constexpr int64_t lanes = 16;
    char* rows = scratch + p.rows_at;
    const int64_t size = static_cast<int64_t>(size_of(a.type));
    if (!reads_in_place<S>(a, p)) std::memset(rows, 0, static_cast<size_t>(lanes * p.dim_bytes));
    for (int64_t j = 0; j < p.tile; j += lanes) {
        const char* from = static_cast<const char*>(a.k) + (at + j * a.k_row) * size;
        int64_t stride = a.k_row * size;
        if (j + lanes > count || !reads_in_place<S>(a, p)) {
            for (int64_t i = 0; i < lanes; ++i) {
                char* row = rows + i * p.dim_bytes;
                if (j + i < count)
                    convert<S>(from + i * stride, a.type, row, a.dim);
                else
                    std::memset(row, 0, static_cast<size_t>(p.dim_bytes));
            }
            from = rows;
            stride = p.dim_bytes;
        }
        const int64_t panel = j / kPanel, here = least(lanes, kPanel - j % kPanel);
        for (int64_t i = 0; i < lanes; i += here) {
            const int64_t column = j + i;
            turn_cells(from + i * stride, stride, here, p.dim_bytes / 4,
                       scratch + p.k_at + (panel + i / kPanel) * p.dim_bytes * kPanel + column % kPanel * 4,
                       kPanel * 4);
        }
    }
}

#ifdef __AVX512F__
// Two rows of 32 values of two bytes as pairs, one of each; `high` null is zeros.
PAREDOWN_INLINE void pair_rows(const void* low, const void* high, void* to) {
    static constexpr struct alignas(64) Pick {
        uint16_t lane[2][32];
        constexpr Pick() : lane{} {
            for (int i = 0; i < 64; ++i) lane[i / 32][i % 32] = static_cast<uint16_t>(i % 2 * 32 + i / 2);
        }
    } pick;
    const I a = _mm512_loadu_si512(low), b = high == nullptr ? set_int(0) : _mm512_loadu_si512(high);
    for (int i = 0; i < 2; ++i)
        _mm512_storeu_si512(static_cast<char*>(to) + i * 64,
                            _mm512_permutex2var_epi16(a, _mm512_load_si512(pick.lane[i]), b));
}
#endif

// Values as panels of weights with k along the keys. Floats lie as they are, bf16 in pairs of keys.
template <Sum S>
void pack_values(const Attention& a, const AttentionPlan& p, int64_t at, int64_t count, char* scratch) {
    const int64_t size = static_cast<int64_t>(size_of(a.type));
    const auto row = [&](int64_t j) { return static_cast<const char*>(a.v) + (at + j * a.v_row) * size; };
    for (int64_t panel = 0; panel < p.dim_panels; ++panel) {
        char* to = scratch + p.v_at + panel * p.tile_bytes * kPanel;
        const int64_t first = panel * kPanel, columns = least(kPanel, a.dim - first);
        if constexpr (S == Sum::bf16) {
            for (int64_t j = 0; j < p.tile_bytes / 2; j += 2, to += kPanel * 4) {
#ifdef __AVX512F__
                if (a.type == DType::bf16 && columns == kPanel && j < count) {
                    pair_rows(row(j) + first * size, j + 1 < count ? row(j + 1) + first * size : nullptr, to);
                    continue;
                }
#endif
                alignas(64) uint16_t pair[2][kPanel] = {};
                for (int i = 0; i < 2; ++i)
                    if (j + i < count)
                        convert<S>(row(j + i) + first * size, a.type, pair[i], columns);
                auto* out = reinterpret_cast<uint32_t*>(to);
                for (int i = 0; i < kPanel; ++i)
                    out[i] = pair[0][i] | static_cast<uint32_t>(pair[1][i]) << 16;
            }
        } else {
            for (int64_t j = 0; j < p.tile; ++j, to += kPanel * 4) {
                std::memset(to, 0, kPanel * 4);
                if (j < count) convert<S>(row(j) + first * size, a.type, to, columns);
            }
        }
    }
}

}  // namespace
}  // namespace paredown::engine
