// AMX tiles: a 16 x 16 product of 64-byte rows per instruction. Compiled with -mamx-tile and friends.
#include <immintrin.h>

#include <cstring>

#include "table.hpp"

namespace paredown {
namespace {

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_per_row[16] = {};
    uint8_t rows[16] = {};
};

// Tiles 0-3 accumulate, 4-5 hold A, 6-7 hold B: four chains cover the latency of one tile product.
void configure_full() {
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) {
        config.bytes_per_row[tile] = 64;
        config.rows[tile] = 16;
    }
    _tile_loadconfig(&config);
}

void load_operands(const void* operand) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, operand, 64);
    _tile_loadd(5, operand, 64);
    _tile_loadd(6, operand, 64);
    _tile_loadd(7, operand, 64);
}

template <typename T>
void drain(double* sink) {
    alignas(64) T result[4][256];
    _tile_stored(0, result[0], 64);
    _tile_stored(1, result[1], 64);
    _tile_stored(2, result[2], 64);
    _tile_stored(3, result[3], 64);
    _tile_release();
    for (auto& tile : result)
        for (T value : tile) *sink += static_cast<double>(value);
}

uint64_t peak_bf16(uint64_t blocks, double* sink) {
    alignas(64) uint16_t operand[512];
    for (auto& value : operand) value = 0x3A83;  // 0.001
    configure_full();
    load_operands(operand);
    for (uint64_t block = 0; block < blocks; ++block)
        for (int i = 0; i < 8; ++i) {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    drain<float>(sink);
    return blocks * 32 * (16 * 16 * 32);
}

uint64_t peak_i8(uint64_t blocks, double* sink) {
    alignas(64) int8_t operand[1024];
    std::memset(operand, 1, sizeof operand);
    configure_full();
    load_operands(operand);
    for (uint64_t block = 0; block < blocks; ++block)
        for (int i = 0; i < 8; ++i) {
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 4, 7);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
    drain<int32_t>(sink);
    return blocks * 32 * (16 * 16 * 64);
}

// The B operand of a tile product is laid out in groups of four rows: b[k/4][n][k%4].
void tile_i8(const int8_t* a, const int8_t* b, int32_t* c, int m, int n, int k) {
    const int groups = (k + 3) / 4;
    alignas(64) int8_t left[16 * 64] = {}, right[16 * 64] = {};
    alignas(64) int32_t out[16 * 16];
    for (int i = 0; i < m; ++i) std::memcpy(left + i * 64, a + i * k, static_cast<size_t>(k));
    for (int l = 0; l < k; ++l)
        for (int j = 0; j < n; ++j) right[(l / 4) * 64 + j * 4 + l % 4] = b[l * n + j];
    TileConfig config;
    config.rows[0] = config.rows[1] = static_cast<uint8_t>(m);
    config.rows[2] = static_cast<uint8_t>(groups);
    config.bytes_per_row[0] = config.bytes_per_row[2] = static_cast<uint16_t>(n * 4);
    config.bytes_per_row[1] = static_cast<uint16_t>(groups * 4);
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_loadd(1, left, 64);
    _tile_loadd(2, right, 64);
    _tile_dpbssd(0, 1, 2);
    _tile_stored(0, out, 64);
    _tile_release();
    for (int i = 0; i < m; ++i)
        for (int j = 0; j < n; ++j) c[i * n + j] = out[i * 16 + j];
}

}  // namespace

Table amx_table(const Table& base) {
    Table t = base;
    t.name = "amx";
    t.peak_bf16 = peak_bf16;
    t.peak_i8 = peak_i8;
    t.tile_i8 = tile_i8;
    return t;
}

}  // namespace paredown
