// The function table that every instruction set fills: one translation unit each, chosen at run time.
#pragma once
#include <cstddef>
#include <cstdint>

namespace paredown {

// A peak probe runs `blocks` register-blocked loops, adds what it computed to `*sink` (so that no
// compiler may drop the work) and returns the multiply-accumulates done.
using PeakFn = uint64_t (*)(uint64_t blocks, double* sink);

struct Table {
    const char* name;
    PeakFn peak_f32, peak_f64, peak_bf16, peak_f16, peak_i8;
    // Simple float32 operations (one add, max or multiply per lane), counted as operations.
    PeakFn elementwise;

    float (*dot_f32)(const float* a, const float* b, size_t n);
    float (*dot_bf16)(const uint16_t* a, const uint16_t* b, size_t n);
    int32_t (*dot_i8)(const uint8_t* a, const int8_t* b, size_t n);

    // Sum of the little-endian 64-bit words of `p`, the last one padded with zeros, modulo 2^64.
    uint64_t (*read)(const uint8_t* p, size_t bytes);
    void (*write)(uint8_t* p, size_t bytes, uint8_t value);
    void (*copy)(uint8_t* to, const uint8_t* from, size_t bytes);

    // c (m, n) = a (m, k) b (k, n), m and n at most 16, k at most 64: one tile product.
    void (*tile_i8)(const int8_t* a, const int8_t* b, int32_t* c, int m, int n, int k);
};

// Each returns its table; entries an instruction set has nothing better for are taken from `base`.
Table scalar_table();
#ifdef PAREDOWN_X86
Table avx2_table(const Table& base);
Table avx512_table(const Table& base);
Table avx512_vnni_table(const Table& base);
Table avx512_bf16_table(const Table& base);
Table avx512_fp16_table(const Table& base);
Table amx_table(const Table& base);
#endif

// Words left after the vector loop of `read`, shared by all of them.
inline uint64_t read_tail(const uint8_t* p, size_t bytes) {
    uint64_t sum = 0;
    while (bytes > 0) {
        uint64_t word = 0;
        const size_t take = bytes < 8 ? bytes : 8;
        __builtin_memcpy(&word, p, take);
        sum += word;
        p += take;
        bytes -= take;
    }
    return sum;
}

inline float bf16_to_float(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    __builtin_memcpy(&value, &wide, sizeof value);
    return value;
}

}  // namespace paredown
