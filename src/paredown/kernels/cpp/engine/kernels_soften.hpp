// Rows of attention scores to exponentials, with the running maximum and sum of each row.
#pragma once
#include "kernels_attention_pack.hpp"

namespace paredown::engine {
namespace {

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
// The same for bf16 weights, a positive scale and few keys, all of them here: V vectors of scores stay in
// registers. Masked lanes read nothing.
template <int V>
void soften_few(const Attention& a, int64_t block, int64_t r, int64_t count, const float* mask, const float* scores,
                char* weights, float& sum) {
    F s[V];
    const F scale = set(a.scale);
    for (int i = 0; i < V; ++i) {
        const __mmask16 here = first(static_cast<int>(most(0, least(W, count - i * W))));
        const float* from = scores + (i / 2 * block + r) * kPanel + i % 2 * W;
        s[i] = mask == nullptr ? load(from) * scale
                               : fma(load(from), scale, _mm512_maskz_loadu_ps(here, mask + i * W));
        s[i] = _mm512_mask_mov_ps(set(-INFINITY), here, s[i]);
    }
    F highest = s[0];
    for (int i = 1; i < V; ++i) highest = max(highest, s[i]);
    const float top = max_lanes(highest);
    constexpr float log2_e = 1.44269504F;
    const F unit = set(log2_e), shift = set(top == -INFINITY ? 0 : -top * log2_e);
    F total = zero();
    for (int i = 0; i < V; i += 2) {
        const F low = power_of_two_fast(fma(s[i], unit, shift));
        const F high = power_of_two_fast(fma(s[i + 1], unit, shift));
        total = total + (low + high);
        store_pair<DType::bf16>(weights + i * W * 2, low, high);
    }
    sum = sum_lanes(total);
}

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

}  // namespace
}  // namespace paredown::engine
