// Scalar conversions and the epilogue of one value. Internal linkage throughout: each translation unit
// is compiled for its own instruction set, and must not share inline code with the others.
#pragma once
#include <cmath>
#include <cstring>

#include "kernels.hpp"

namespace paredown::engine {
namespace {

[[maybe_unused]] inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
[[maybe_unused]] inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
[[maybe_unused]] inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
[[maybe_unused]] inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

[[maybe_unused]] inline float from_bf16(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

// Rounds to nearest even; NaN stays NaN.
[[maybe_unused]] inline uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<uint16_t>((bits >> 16) | 0x40U);
    return static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

// NaN becomes the lowest value, as the vector code has it.
[[maybe_unused]] inline int32_t quantised(float value, float inverse_scale, int32_t zero, int32_t low,
                                          int32_t high) {
    float q = std::nearbyintf(value * inverse_scale) + static_cast<float>(zero);
    q = q > static_cast<float>(low) ? q : static_cast<float>(low);
    q = q < static_cast<float>(high) ? q : static_cast<float>(high);
    return static_cast<int32_t>(q);
}

// The number stored at `p[i]`, zero point and scale not yet applied.
[[maybe_unused]] inline float load_one(const void* p, DType type, int64_t i) {
    switch (type) {
        case DType::f32: return static_cast<const float*>(p)[i];
        case DType::bf16: return from_bf16(static_cast<const uint16_t*>(p)[i]);
        case DType::u8: return static_cast<const uint8_t*>(p)[i];
        case DType::s8: return static_cast<const int8_t*>(p)[i];
        case DType::s32: return static_cast<float>(static_cast<const int32_t*>(p)[i]);
    }
    return 0;
}

[[maybe_unused]] inline float load_one(const void* p, DType type, int64_t i, float scale, int32_t zero) {
    const float stored = load_one(p, type, i);
    return type == DType::f32 || type == DType::bf16 ? stored
                                                     : (stored - static_cast<float>(zero)) * scale;
}

[[maybe_unused]] inline void store_one(void* p, DType type, int64_t i, float value, float scale,
                                       int32_t zero) {
    switch (type) {
        case DType::f32: static_cast<float*>(p)[i] = value; break;
        case DType::bf16: static_cast<uint16_t*>(p)[i] = to_bf16(value); break;
        case DType::u8:
            static_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(quantised(value, 1 / scale, zero, 0, 255));
            break;
        case DType::s8:
            static_cast<int8_t*>(p)[i] = static_cast<int8_t>(quantised(value, 1 / scale, zero, -128, 127));
            break;
        case DType::s32: static_cast<int32_t*>(p)[i] = static_cast<int32_t>(std::nearbyintf(value)); break;
    }
}

[[maybe_unused]] inline float activate_one(float x, Act act) {
    const auto clamp = [](float v, float low, float high) {
        return v < low ? low : v > high ? high : v;
    };
    switch (act) {
        case Act::none: return x;
        case Act::relu: return x < 0 ? 0 : x;
        case Act::relu6: return clamp(x, 0, 6);
        case Act::silu: return x / (1 + std::exp(-x));
        case Act::hardswish: return x * clamp(x / 6 + 0.5F, 0, 1);
        case Act::gelu: return 0.5F * x * (1 + std::erf(x * 0.70710678F));
        case Act::gelu_tanh:
            return 0.5F * x * (1 + std::tanh(0.79788456F * (x + 0.044715F * x * x * x)));
        case Act::sigmoid: return 1 / (1 + std::exp(-x));
        case Act::hardsigmoid: return clamp(x / 6 + 0.5F, 0, 1);
        case Act::tanh: return std::tanh(x);
    }
    return x;
}

// Stores `acc` of (row, column) as the epilogue says.
[[maybe_unused]] inline void finish_one(const Epilogue& ep, double acc, int64_t row, int64_t column,
                                        void* out, int64_t out_stride) {
    float v = static_cast<float>(acc * (ep.scale != nullptr ? ep.scale[column] : 1.0) +
                                 (ep.bias != nullptr ? ep.bias[column] : 0.0));
    const float residual =
        ep.residual == nullptr ? 0
                               : load_one(ep.residual, ep.residual_type, row * ep.residual_stride + column,
                                          ep.residual_scale, ep.residual_zero);
    if (!ep.residual_after) v += residual;
    v = activate_one(v, ep.act);
    if (ep.residual_after) v += residual;
    store_one(out, ep.out_type, row * out_stride + column, v, ep.out_scale, ep.out_zero);
}

}  // namespace
}  // namespace paredown::engine
