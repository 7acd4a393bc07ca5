// The scalar reference, always built; the build switches auto-vectorisation off for this file.
#include "table.hpp"

namespace paredown {
namespace {

template <typename T>
uint64_t peak_float(uint64_t blocks, double* sink) {
    constexpr int chains = 8;
    T acc[chains];
    for (int i = 0; i < chains; ++i) acc[i] = T(i) * T(0.125);
    T scale = T(0.999), shift = T(0.001);
    // The operands become opaque, so that no value is known at compile time.
    asm volatile("" : "+m"(scale), "+m"(shift));
    const T a = scale, b = shift;
    T x0 = acc[0], x1 = acc[1], x2 = acc[2], x3 = acc[3];
    T x4 = acc[4], x5 = acc[5], x6 = acc[6], x7 = acc[7];
    for (uint64_t block = 0; block < blocks; ++block) {
        for (int i = 0; i < 32; ++i) {
            x0 = x0 * a + b; x1 = x1 * a + b; x2 = x2 * a + b; x3 = x3 * a + b;
            x4 = x4 * a + b; x5 = x5 * a + b; x6 = x6 * a + b; x7 = x7 * a + b;
        }
    }
    *sink += static_cast<double>(x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7);
    return blocks * 32 * chains;
}

uint64_t peak_i8(uint64_t blocks, double* sink) {
    alignas(64) static const int8_t values[256] = {1, -2, 3, -4, 5, -6, 7, -8};
    const int8_t* a = values;
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (uint64_t block = 0; block < blocks; ++block) {
        asm volatile("" : "+r"(a) : : "memory");  // else one pass would be multiplied by `blocks`
        for (int i = 0; i < 256; i += 4) {
            s0 += int32_t(a[i]) * a[255 - i];
            s1 += int32_t(a[i + 1]) * a[254 - i];
            s2 += int32_t(a[i + 2]) * a[253 - i];
            s3 += int32_t(a[i + 3]) * a[252 - i];
        }
    }
    *sink += static_cast<double>(s0 + s1 + s2 + s3);
    return blocks * 256;
}

uint64_t elementwise(uint64_t blocks, double* sink) {
    float step = 0.5F, top = 4.0F;
    asm volatile("" : "+m"(step), "+m"(top));
    float x0 = 0, x1 = 1, x2 = 2, x3 = 3, x4 = 4, x5 = 5, x6 = 6, x7 = 7;
    for (uint64_t block = 0; block < blocks; ++block) {
        for (int i = 0; i < 16; ++i) {
            x0 += step; x1 += step; x2 += step; x3 += step;
            x4 += step; x5 += step; x6 += step; x7 += step;
            x0 *= step; x1 *= step; x2 *= step; x3 *= step;
            x4 *= step; x5 *= step; x6 *= step; x7 *= step;
        }
    }
    *sink += x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7;
    return blocks * 16 * 16;
}

float dot_f32(const float* a, const float* b, size_t n) {
    float sum = 0;
    for (size_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

float dot_bf16(const uint16_t* a, const uint16_t* b, size_t n) {
    float sum = 0;
    for (size_t i = 0; i < n; ++i) sum += bf16_to_float(a[i]) * bf16_to_float(b[i]);
    return sum;
}

int32_t dot_i8(const uint8_t* a, const int8_t* b, size_t n) {
    int32_t sum = 0;
    for (size_t i = 0; i < n; ++i) sum += int32_t(a[i]) * int32_t(b[i]);
    return sum;
}

uint64_t read(const uint8_t* p, size_t bytes) {
    uint64_t s0 = 0, s1 = 0, s2 = 0, s3 = 0, w[4];
    size_t i = 0;
    for (; i + 32 <= bytes; i += 32) {
        __builtin_memcpy(w, p + i, 32);
        s0 += w[0]; s1 += w[1]; s2 += w[2]; s3 += w[3];
    }
    return s0 + s1 + s2 + s3 + read_tail(p + i, bytes - i);
}

void write(uint8_t* p, size_t bytes, uint8_t value) {
    const uint64_t word = 0x0101010101010101ULL * value;
    size_t i = 0;
    for (; i + 8 <= bytes; i += 8) {
        __builtin_memcpy(p + i, &word, 8);
        asm volatile("" : : : "memory");  // else the loop becomes a call of memset
    }
    for (; i < bytes; ++i) p[i] = value;
}

void copy(uint8_t* to, const uint8_t* from, size_t bytes) {
    size_t i = 0;
    uint64_t word;
    for (; i + 8 <= bytes; i += 8) {
        __builtin_memcpy(&word, from + i, 8);
        __builtin_memcpy(to + i, &word, 8);
        asm volatile("" : : : "memory");  // else the loop becomes a call of memcpy
    }
    for (; i < bytes; ++i) to[i] = from[i];
}

void tile_i8(const int8_t* a, const int8_t* b, int32_t* c, int m, int n, int k) {
    for (int i = 0; i < m; ++i)
        for (int j = 0; j < n; ++j) {
            int32_t sum = 0;
            for (int l = 0; l < k; ++l) sum += int32_t(a[i * k + l]) * b[l * n + j];
            c[i * n + j] = sum;
        }
}

}  // namespace

Table scalar_table() {
    Table t{};
    t.name = "scalar";
    t.peak_f32 = peak_float<float>;
    t.peak_f64 = peak_float<double>;
    t.peak_i8 = peak_i8;
    t.elementwise = elementwise;
    t.dot_f32 = dot_f32;
    t.dot_bf16 = dot_bf16;
    t.dot_i8 = dot_i8;
    t.read = read;
    t.write = write;
    t.copy = copy;
    t.tile_i8 = tile_i8;
    return t;
}

}  // namespace paredown
