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

}  // namespace
}  // namespace paredown::engine
