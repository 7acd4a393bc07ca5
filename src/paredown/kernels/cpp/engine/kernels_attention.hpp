// Attention without materialised scores: tiles of keys, a running maximum and sum for each query row
// (online softmax, Milakov and Gimelshein 2018; the tiling of FlashAttention, Dao et al. 2022).
//
// A unit is up to kQueries query rows of one head. For each tile of keys, K and V are packed like
// weights (kernels_layout.hpp) once; then blocks of rows go through scores, exponentials and values.
#pragma once
#include "kernels_soften.hpp"

namespace paredown::engine {
namespace {

// Scores of one row of queries to weights; returns by how much what was summed before shrinks.
template <Sum S>
PAREDOWN_INLINE float soften_row(const Attention& a, const AttentionPlan& p, int64_t block, int64_t r,
                                 int64_t count, const float* mask, float* scores, char* weights, float& top,
                                 float& sum) {
#ifdef __AVX512F__
    if constexpr (S == Sum::bf16)
        if (a.scale > 0) {
            if (p.tile > 4 * W) return soften_fast(a, p, block, r, count, mask, scores, weights, top, sum);
            (p.tile > 2 * W ? soften_few<4> : soften_few<2>)(a, block, r, count, mask, scores, weights, sum);
            return 0;
        }
#endif
    return soften<S>(a, p, block, r, count, mask, scores, weights, top, sum);
}

// One row of results, columns [column, column + count).
PAREDOWN_INLINE void put_row(const Attention& a, int64_t at, int64_t column, int64_t count, const float* values,
                             float sum) {
    const F share = set(sum > 0 || sum != sum ? 1 / sum : 0);
    void* to = element(a.out, a.type, at + column);
    if (count == kPanel && a.type == DType::bf16)
        store_pair<DType::bf16>(to, load(values) * share, load(values + W) * share);
    else
        each_vector(count, [&](int64_t c, int n) {
            store_value(to, a.type, c, load(values + c) * share, n, 1, 0);
        });
}

template <class P>
void attention(const Attention& a, int64_t begin, int64_t end, void* area) {
    constexpr Sum S = P::kSum;
    char* scratch = static_cast<char*>(area);
    const AttentionPlan p = attention_plan<P>(a);
    const int64_t per_head = ceil_div(a.q_len, queries_of(a)), size = static_cast<int64_t>(size_of(a.type));
    auto* out = reinterpret_cast<float*>(scratch + p.out_at);
    auto* tops = reinterpret_cast<float*>(scratch + p.stat_at);
    auto* product = reinterpret_cast<float*>(scratch + p.product_at);
    auto* scores = reinterpret_cast<float*>(scratch + p.scores_at);
    char* weights = scratch + p.weights_at;
    float* sums = tops + kQueries;
    const int64_t width = p.dim_panels * kPanel;
    std::memset(scratch + p.q_at, 0, static_cast<size_t>(P::kBlock * p.dim_bytes));
    std::memset(weights, 0, static_cast<size_t>(P::kBlock * p.tile_bytes));
    P::start();
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t first = unit % per_head * queries_of(a), h = unit / per_head % a.heads;
        const int64_t b = unit / per_head / a.heads, kv = h / (a.heads / a.kv_heads);
        const int64_t queries = least(queries_of(a), a.q_len - first);
        const int64_t out_at = b * a.out_batch + h * a.out_head + first * a.out_row;
        for (int64_t i = 0; i < queries; ++i) tops[i] = -INFINITY, sums[i] = 0;
        const int64_t last = first + queries - 1 + a.kv_len - a.q_len;  // causal: the last key seen
        const int64_t keys = a.causal ? most(0, least(a.kv_len, last + 1)) : a.kv_len;
        const bool once = keys > 0 && keys <= p.tile;  // nothing to carry from tile to tile of keys
        if (!once) std::memset(out, 0, static_cast<size_t>(queries * width) * 4);
        for (int64_t key = 0; key < keys; key += p.tile) {
            const int64_t count = least(p.tile, keys - key);
            pack_keys<S>(a, p, b * a.k_batch + kv * a.k_head + key * a.k_row, count, scratch);
            pack_values<S>(a, p, b * a.v_batch + kv * a.v_head + key * a.v_row, count, scratch);
            for (int64_t q = 0; q < queries; q += P::kBlock) {
                const int rows = static_cast<int>(least(P::kBlock, queries - q));
                const char* q_rows = static_cast<const char*>(a.q) +
                                     (b * a.q_batch + h * a.q_head + (first + q) * a.q_row) * size;
                int64_t q_stride = a.q_row * size;
                if (rows % P::kWhole != 0 || !reads_in_place<S>(a, p)) {
                    for (int r = 0; r < rows; ++r)
                        convert<S>(q_rows + r * q_stride, a.type, scratch + p.q_at + r * p.dim_bytes, a.dim);
                    q_rows = scratch + p.q_at;
                    q_stride = p.dim_bytes;
                }
                for (int64_t panel = 0; panel < p.panels; ++panel)
                    P::multiply(q_rows, q_stride, rows, p.dim_bytes,
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
                    shrink[r] = soften_row<S>(a, p, P::kBlock, r, seen, mask, scores,
                                              weights + r * p.tile_bytes, tops[q + r], sums[q + r]);
                }
                for (int64_t panel = 0; panel < p.dim_panels; ++panel) {
                    P::multiply(weights, p.tile_bytes, rows, p.tile_bytes,
                                scratch + p.v_at + panel * p.tile_bytes * kPanel, product);
                    const int64_t column = panel * kPanel, columns = least(kPanel, a.dim - column);
                    for (int r = 0; r < rows; ++r) {
                        if (once) {
                            put_row(a, out_at + (q + r) * a.out_row, column, columns, product + r * kPanel,
                                    sums[q + r]);
                            continue;
                        }
                        float* o = out + (q + r) * width + column;
                        for (int i = 0; i < kPanel; i += W)
                            store(o + i, fma(load(o + i), set(shrink[r]), load(product + r * kPanel + i)));
                    }
                }
            }
        }
        for (int64_t i = 0; i < queries && !once; ++i)
            put_row(a, out_at + i * a.out_row, 0, a.dim, out + i * width, sums[i]);
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
    static constexpr int kWhole = 1;  // rows are read in multiples of this
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

