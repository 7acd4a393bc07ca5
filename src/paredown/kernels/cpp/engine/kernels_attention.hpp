// Attention without materialised scores: tiles of keys, a running maximum and sum for each query row
// (online softmax, Milakov and Gimelshein 2018; the tiling of FlashAttention, Dao et al. 2022).
//
// A unit is up to kQueries query rows of one head. For each tile of keys, K and V are packed like
// weights (kernels_layout.hpp) once; then blocks of rows go through scores, exponentials and values.
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

// Keys [first, first + count) of one head as a panel of weights with k along the head's dimension.
template <Sum S>
void pack_keys(const Attention& a, const AttentionPlan& p, int64_t at, int64_t count, char* scratch) {
    constexpr int64_t lanes = 16;
    char* rows = scratch + p.rows_at;
    const int64_t size = static_cast<int64_t>(size_of(a.type));
    std::memset(rows, 0, static_cast<size_t>(lanes * p.dim_bytes));
    for (int64_t j = 0; j < p.tile; j += lanes) {
        for (int64_t i = 0; i < lanes; ++i) {
            char* row = rows + i * p.dim_bytes;
            if (j + i < count)
                convert<S>(static_cast<const char*>(a.k) + (at + (j + i) * a.k_row) * size, a.type, row, a.dim);
            else
                std::memset(row, 0, static_cast<size_t>(p.dim_bytes));
        }
        const int64_t panel = j / kPanel, here = least(lanes, kPanel - j % kPanel);
        for (int64_t i = 0; i < lanes; i += here) {
            const int64_t column = j + i;
            turn_cells(rows + i * p.dim_bytes, p.dim_bytes, here, p.dim_bytes / 4,
                       scratch + p.k_at + (panel + i / kPanel) * p.dim_bytes * kPanel + column % kPanel * 4,
                       kPanel * 4);
        }
    }
}

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

// Scores of one query row over a tile to exponentials; returns by how much earlier sums shrink.
template <Sum S>
float soften(const Attention& a, const AttentionPlan& p, int64_t block, int64_t r, int64_t count,
             const float* mask, float* scores, char* weights, float& top, float& sum) {
    F highest = set(-INFINITY);
    for (int64_t i = 0; i < p.tile; i += W) {
        float* s = scores + (i / kPanel * block + r) * kPanel + i % kPanel;
        const int n = static_cast<int>(most(0, least(W, count - i)));
        F v = load(s) * set(a.scale);
        if (mask != nullptr && n > 0) v = v + load_n<DType::f32>(mask, i, n);
        store(s, v);
        for (int j = n; j < W; ++j) s[j] = -INFINITY;
        if (n < W) v = load(s);
        highest = max(highest, v);
    }
    const float before = top, tile_top = max_lanes(highest);
    top = tile_top > top ? tile_top : top;
    const bool nothing_yet = top == -INFINITY;
    F total = zero();
    for (int64_t i = 0; i < p.tile; i += W) {
        const float* s = scores + (i / kPanel * block + r) * kPanel + i % kPanel;
        const F v = nothing_yet || i >= count ? zero() : exponential(load(s) - set(top));
        total = total + v;
        store_as<S == Sum::bf16 ? DType::bf16 : DType::f32>(weights + i * element_size(S), v);
    }
    const float shrink = before == -INFINITY ? 0 : std::exp(before - top);
    sum = sum * shrink + sum_lanes(total);
    return shrink;
}

#ifdef __AVX512F__
// The same for bf16 weights and a positive scale: one multiply-add, an exponential of their precision,
// two vectors at a time.
inline float soften_fast(const Attention& a, const AttentionPlan& p, int64_t block, int64_t r, int64_t count,
                         const float* mask, float* scores, char* weights, float& top, float& sum) {
    const int64_t vectors = ceil_div(count, W);
    const auto at = [&](int64_t vector) {
        return scores + (vector / 2 * block + r) * kPanel + vector % 2 * W;
    };
    const float unit = mask == nullptr ? a.scale : 1;  // what the stored scores are still to be multiplied by
    if (mask != nullptr)
        for (int64_t i = 0; i < vectors; ++i) {
            const F added = load_n<DType::f32>(mask, i * W, static_cast<int>(least(W, count - i * W)));
            store(at(i), fma(load(at(i)), set(a.scale), added));
        }
    if (count % W != 0) {
        float* last = at(vectors - 1);
        store(last, _mm512_mask_mov_ps(set(-INFINITY), first(static_cast<int>(count % W)), load(last)));
    }
    F highest = set(-INFINITY);
    for (int64_t i = 0; i < vectors; ++i) highest = max(highest, load(at(i)));
    const float before = top, tile_top = max_lanes(highest) * unit;
    top = tile_top > top ? tile_top : top;
    if (top == -INFINITY) {
        std::memset(weights, 0, static_cast<size_t>(p.tile_bytes));
        return 0;
    }
    constexpr float log2_e = 1.44269504F;
    const F scale = set(unit * log2_e), shift = set(-top * log2_e);
    const auto weight = [&](int64_t i) {
        return i < vectors ? power_of_two_fast(fma(load(at(i)), scale, shift)) : zero();
    };
    F total = zero();
    for (int64_t i = 0; i < p.tile / W; i += 2) {
        const F low = weight(i), high = weight(i + 1);
        total = total + (low + high);
        store_pair<DType::bf16>(weights + i * W * 2, low, high);
    }
    const float shrink = before == -INFINITY ? 0 : std::exp(before - top);
    sum = sum * shrink + sum_lanes(total);
    return shrink;
}
#endif

template <class P>
void attention(const Attention& a, int64_t begin, int64_t end, void* area) {
    constexpr Sum S = P::kSum;
    char* scratch = static_cast<char*>(area);
    const AttentionPlan p = attention_plan<P>(a);
    const int64_t per_head = ceil_div(a.q_len, queries_of(a)), size = static_cast<int64_t>(size_of(a.type));
    auto* out = reinterpret_cast<float*>(scratch + p.out_at);
    auto* tops = reinterpret_cast<float*>(scratch + p.stat_at);
    auto* product = reinterpret_cast<float*>(scratch + p.product_at);
    float* sums = tops + kQueries;
    const int64_t width = p.dim_panels * kPanel;
    std::memset(scratch + p.q_at, 0, static_cast<size_t>(P::kBlock * p.dim_bytes));
    std::memset(scratch + p.weights_at, 0, static_cast<size_t>(P::kBlock * p.tile_bytes));
    P::start();
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t first = unit % per_head * queries_of(a), h = unit / per_head % a.heads;
        const int64_t b = unit / per_head / a.heads, kv = h / (a.heads / a.kv_heads);
        const int64_t queries = least(queries_of(a), a.q_len - first);
        for (int64_t i = 0; i < queries; ++i) tops[i] = -INFINITY, sums[i] = 0;
        std::memset(out, 0, static_cast<size_t>(queries * width) * 4);
        const int64_t last = first + queries - 1 + a.kv_len - a.q_len;  // causal: the last key seen
        const int64_t keys = a.causal ? most(0, least(a.kv_len, last + 1)) : a.kv_len;
        for (int64_t key = 0; key < keys; key += p.tile) {
            const int64_t count = least(p.tile, keys - key);
            pack_keys<S>(a, p, b * a.k_batch + kv * a.k_head + key * a.k_row, count, scratch);
            pack_values<S>(a, p, b * a.v_batch + kv * a.v_head + key * a.v_row, count, scratch);
            for (int64_t q = 0; q < queries; q += P::kBlock) {
                const int rows = static_cast<int>(least(P::kBlock, queries - q));
                char* q_rows = scratch + p.q_at;
                auto* scores = reinterpret_cast<float*>(scratch + p.scores_at);
                for (int r = 0; r < rows; ++r)
                    convert<S>(static_cast<const char*>(a.q) +
                                   (b * a.q_batch + h * a.q_head + (first + q + r) * a.q_row) * size,
                               a.type, q_rows + r * p.dim_bytes, a.dim);
                for (int64_t panel = 0; panel < p.panels; ++panel)
                    P::multiply(q_rows, p.dim_bytes, rows, p.dim_bytes,
                                scratch + p.k_at + panel * p.dim_bytes * kPanel,
                                scores + panel * P::kBlock * kPanel);
                float shrink[P::kBlock];
                for (int r = 0; r < rows; ++r) {
                    const int64_t row = first + q + r;
                    const float* mask = a.mask == nullptr ? nullptr
                                                          : a.mask + b * a.mask_batch + h * a.mask_head +
                                                                row * a.mask_row + key;
                    const int64_t seen =
                        a.causal ? most(0, least(count, row + 1 + a.kv_len - a.q_len - key)) : count;
#ifdef __AVX512F__
                    if constexpr (S == Sum::bf16)
                        if (a.scale > 0) {
                            shrink[r] = soften_fast(a, p, P::kBlock, r, seen, mask, scores,
                                                    scratch + p.weights_at + r * p.tile_bytes, tops[q + r],
                                                    sums[q + r]);
                            continue;
                        }
#endif
                    shrink[r] = soften<S>(a, p, P::kBlock, r, seen, mask, scores,
                                          scratch + p.weights_at + r * p.tile_bytes, tops[q + r], sums[q + r]);
                }
                for (int64_t panel = 0; panel < p.dim_panels; ++panel) {
                    P::multiply(scratch + p.weights_at, p.tile_bytes, rows, p.tile_bytes,
                                scratch + p.v_at + panel * p.tile_bytes * kPanel, product);
                    for (int r = 0; r < rows; ++r) {
                        float* o = out + (q + r) * width + panel * kPanel;
                        for (int i = 0; i < kPanel; i += W)
                            store(o + i, fma(load(o + i), set(shrink[r]), load(product + r * kPanel + i)));
                    }
                }
            }
        }
        for (int64_t i = 0; i < queries; ++i) {
            const F share = set(sums[i] > 0 || sums[i] != sums[i] ? 1 / sums[i] : 0);
            void* to = element(a.out, a.type, b * a.out_batch + h * a.out_head + (first + i) * a.out_row);
            each_vector(a.dim, [&](int64_t c, int n) {
                store_value(to, a.type, c, load(out + i * width + c) * share, n, 1, 0);
            });
        }
    }
    P::stop();
}

template <class P>
int64_t attention_units(const Attention& a) { return a.batch * a.heads * ceil_div(a.q_len, queries_of(a)); }
template <class P>
size_t attention_scratch(const Attention& a) { return attention_plan<P>(a).scratch; }

// Vectors of floats; bf16 is widened.
struct FloatAttention {
    static constexpr Sum kSum = Sum::wide;
    static constexpr int kBlock = kRows;
    static void start() {}
    static void stop() {}
    static void multiply(const char* a, int64_t stride, int rows, int64_t bytes, const char* w, float* sums) {
        const int64_t offset = 0;
        sum_rows_of<Sum::f32>(rows)(a, stride, &offset, 1, bytes, w, sums);
    }
};
// Floats as they are: `wide` would round them to bf16.
struct WholeAttention : FloatAttention {
    static constexpr Sum kSum = Sum::f32;
};

template <class Half>
struct AttentionOf {
    static int64_t units(const Attention& a) { return attention_units<Half>(a); }
    static size_t scratch(const Attention& a) {
        return a.type == DType::f32 ? attention_scratch<WholeAttention>(a) : attention_scratch<Half>(a);
    }
    static void run(const Attention& a, int64_t begin, int64_t end, void* scratch) {
        if (a.type == DType::f32)
            attention<WholeAttention>(a, begin, end, scratch);
        else
            attention<Half>(a, begin, end, scratch);
    }
};

}  // namespace
}  // namespace paredown::engine
