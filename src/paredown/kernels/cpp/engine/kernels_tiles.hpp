// What AMX kernels share: the tiles' shapes, their products, and blocks that wait for their epilogue.
#pragma once
#include "kernels_product.hpp"

namespace paredown::engine {
namespace {

constexpr int kTileRows = 32;

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_per_row[16] = {};
    uint8_t rows[16] = {};
};

[[maybe_unused]] void configure() {
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) {
        config.bytes_per_row[tile] = 64;
        config.rows[tile] = 16;
    }
    _tile_loadconfig(&config);
}

enum class Kind { bf16, u8s8, s8s8 };

// The builtin wants its tile numbers as literals.
#define PAREDOWN_TILE_PRODUCT(c, a, b)                           \
    do {                                                         \
        if constexpr (K == Kind::bf16) _tile_dpbf16ps(c, a, b);  \
        if constexpr (K == Kind::u8s8) _tile_dpbusd(c, a, b);    \
        if constexpr (K == Kind::s8s8) _tile_dpbssd(c, a, b);    \
    } while (false)

// A block whose sums wait for their epilogue, as runs of neighbouring outputs.
struct Pending {
    alignas(64) char sums[kTileRows * kPanel * 4];
    struct Stretch {
        int64_t out_row;
        int from, count;
    } stretches[kTileRows];
    const Finish* finish = nullptr;
    int stretch = 0, rows = 0;  // the present one; rows not yet done

    void clear() { stretch = rows = count_ = 0; }
    void add(int64_t out_row, int from, int count) {
        if (count <= 0) return;
        stretches[count_++] = {out_row, from, count};
        rows += count;
    }
    void step(int count) {
        while (count > 0 && rows > 0) {
            Stretch& s = stretches[stretch];
            const int now = count < s.count ? count : s.count;
            finish->rows(*finish, sums + s.from * kSumsRow, s.out_row, now);
            s.out_row += now;
            s.from += now;
            s.count -= now;
            if (s.count == 0) ++stretch;
            rows -= now;
            count -= now;
        }
    }
    void flush() { step(rows); }

private:
    int count_ = 0;
};

// `Passing`: by a load that leaves L1 to others.
template <bool Passing, int Tile>
PAREDOWN_INLINE void load_tile(const char* p, int64_t stride) {
    // The builtins want literal numbers.
#define PAREDOWN_LOAD_TILE(T)                                  \
    if constexpr (Tile == T) {                                 \
        if constexpr (Passing) _tile_stream_loadd(T, p, stride); \
        if constexpr (!Passing) _tile_loadd(T, p, stride);     \
    }
    PAREDOWN_LOAD_TILE(4)
    PAREDOWN_LOAD_TILE(5)
    PAREDOWN_LOAD_TILE(6)
    PAREDOWN_LOAD_TILE(7)
#undef PAREDOWN_LOAD_TILE
}

// Rows 0-15 of the block (and 16-31) against columns 0-15 of the panel (and 16-31). All tiles of a step are
// loaded before the first product: one that waits for its tile would hold up those behind it. Sums go on from
// those at `from`; null: from nothing.
template <Kind K, bool TwoRows, bool TwoColumns, bool PassRows, bool PassWeights>
void sum_tiles(const char* a, int64_t stride, const int64_t* offsets, int64_t taps, int64_t tap_bytes,
               const char* w, const char* from, char* sums, Pending& before, Ahead ahead) {
    constexpr int64_t w_stride = kPanel * 4;
    const int64_t steps = taps * (tap_bytes / 64);
    const int per_step = static_cast<int>(ceil_div(before.rows, steps));
    if (from == nullptr) {
        _tile_zero(0);
        if constexpr (TwoColumns) _tile_zero(1);
        if constexpr (TwoRows) _tile_zero(2);
        if constexpr (TwoRows && TwoColumns) _tile_zero(3);
    } else {
        _tile_loadd(0, from, w_stride);
        if constexpr (TwoColumns) _tile_loadd(1, from + 64, w_stride);
        if constexpr (TwoRows) _tile_loadd(2, from + 16 * w_stride, w_stride);
        if constexpr (TwoRows && TwoColumns) _tile_loadd(3, from + 16 * w_stride + 64, w_stride);
    }
    for (int64_t tap = 0; tap < taps; ++tap) {
        const char *low = a + offsets[tap], *high = low + 16 * stride;
        for (int64_t k = 0; k < tap_bytes; k += 64, w += 16 * w_stride) {
            load_tile<PassWeights, 6>(w, w_stride);
            load_tile<PassRows, 4>(low + k, stride);
            if constexpr (TwoColumns) load_tile<PassWeights, 7>(w + 64, w_stride);
            if constexpr (TwoRows) load_tile<PassRows, 5>(high + k, stride);
            PAREDOWN_TILE_PRODUCT(0, 4, 6);
            if constexpr (TwoColumns) PAREDOWN_TILE_PRODUCT(1, 4, 7);
            if constexpr (TwoRows) PAREDOWN_TILE_PRODUCT(2, 5, 6);
            if constexpr (TwoRows && TwoColumns) PAREDOWN_TILE_PRODUCT(3, 5, 7);
            for (int64_t i = 0; i < ahead.lines; ++i, ahead.weights += 64) _mm_prefetch(ahead.weights, _MM_HINT_T1);
            before.step(per_step);
        }
    }
    before.flush();
    _tile_stored(0, sums, w_stride);
    if constexpr (TwoColumns) _tile_stored(1, sums + 64, w_stride);
    if constexpr (TwoRows) _tile_stored(2, sums + 16 * w_stride, w_stride);
    if constexpr (TwoRows && TwoColumns) _tile_stored(3, sums + 16 * w_stride + 64, w_stride);
}

using SumTiles = void (*)(const char*, int64_t, const int64_t*, int64_t, int64_t, const char*, const char*, char*,
                          Pending&, Ahead);

template <Kind K, bool PassRows, bool PassWeights>
SumTiles sum_tiles_of(bool two_rows, bool two_columns) {
    if (two_rows)
        return two_columns ? sum_tiles<K, true, true, PassRows, PassWeights>
                           : sum_tiles<K, true, false, PassRows, PassWeights>;
    return two_columns ? sum_tiles<K, false, true, PassRows, PassWeights>
                       : sum_tiles<K, false, false, PassRows, PassWeights>;
}

}  // namespace
}  // namespace paredown::engine
