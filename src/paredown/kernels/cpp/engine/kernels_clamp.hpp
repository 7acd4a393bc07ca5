// The short way to 8-bit outputs: scale and zero point of the output become part of the multiply-add of
// the epilogue, the activation a clamp, rounding that of the conversion to integers.
#pragma once
#include "kernels_math.hpp"

namespace paredown::engine {
namespace {

// Activations that bound their argument and do no more.
constexpr bool is_clamp(Act a) { return a == Act::none || a == Act::relu || a == Act::relu6; }
// Whether outputs of this type can be written straight from the multiply-add, where nothing is added to them.
constexpr bool folds(Act a, DType out) { return (out == DType::u8 || out == DType::s8) && is_clamp(a); }

PAREDOWN_INLINE void fold(F& scale, F& bias, float inverse_scale, int32_t zero_point) {
    scale = scale * set(inverse_scale);
    bias = fma(bias, set(inverse_scale), set(static_cast<float>(zero_point)));
}

// An activation in units of the output, in one with the output's own range.
template <DType Out>
struct Clamp {
    F low, high;

    Clamp(Act act, float inverse_scale, int32_t zero_point) {
        const float bottom = Out == DType::u8 ? 0 : -128, top = Out == DType::u8 ? 255 : 127;
        const float at_zero = static_cast<float>(zero_point), at_six = at_zero + 6 * inverse_scale;
        low = set(act == Act::none || at_zero < bottom ? bottom : at_zero);
        high = set(act != Act::relu6 || at_six > top ? top : at_six);
    }
    // Rounded to whole numbers; NaN becomes the lowest value.
    F bounded(F v) const { return nearest(min(max(v, low), high)); }
    void put(void* to, F v) const { store_bytes(to, to_int(min(max(v, low), high))); }
};

}  // namespace
}  // namespace paredown::engine
