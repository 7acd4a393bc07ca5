// The epilogue of product kernels, one row of one panel of columns at a time.
#pragma once
#include "kernels_math.hpp"

namespace paredown::engine {
namespace {

// Columns of a weight panel: two vectors on AVX-512 (also two AMX tiles), two on AVX2.
constexpr int kPanel = 2 * W;

struct Finish {
    alignas(64) float scale[kPanel], bias[kPanel];
    alignas(64) int32_t offset[kPanel];  // added to integer sums first
    const Epilogue* ep = nullptr;
    char* out = nullptr;
    int64_t out_stride = 0, column = 0;
    int columns = 0;  // of this panel
    float inverse_scale = 1;
    void (*row)(const Finish&, const void* sums, int64_t row) = nullptr;

    // Points at columns [first, first + count); `sums_of_weights` null for float sums.
    void select(int64_t first, int count, const int32_t* sums_of_weights, int32_t zero_point) {
        column = first;
        columns = count;
        for (int i = 0; i < kPanel; ++i) {
            const bool there = i < count;
            scale[i] = there ? (ep->scale != nullptr ? ep->scale[first + i] : 1) : 0;
            bias[i] = there && ep->bias != nullptr ? ep->bias[first + i] : 0;
            offset[i] = there && sums_of_weights != nullptr ? -zero_point * sums_of_weights[i] : 0;
        }
    }
};

template <Act A, DType Out, bool Integer>
void finish_row(const Finish& f, const void* sums, int64_t row) {
    const Epilogue& ep = *f.ep;
    char* out = f.out + (row * f.out_stride + f.column) * static_cast<int64_t>(size_of(Out));
    constexpr bool fast = Out != DType::f32;
#pragma GCC unroll 2
    for (int i = 0; i < kPanel; i += W) {
        const int n = static_cast<int>(least(f.columns - i, W));
        if (n <= 0) break;
        F v;
        if constexpr (Integer)
            v = to_float(add_int(load(static_cast<const int32_t*>(sums) + i), load(f.offset + i)));
        else
            v = load(static_cast<const float*>(sums) + i);
        v = fma(v, load(f.scale + i), load(f.bias + i));
        if (ep.residual != nullptr) {
            const F residual = load_value(ep.residual, ep.residual_type,
                                          row * ep.residual_stride + f.column + i, n, ep.residual_scale,
                                          ep.residual_zero);
            v = ep.residual_after ? activate<A, fast>(v) + residual : activate<A, fast>(v + residual);
        } else {
            v = activate<A, fast>(v);
        }
        if constexpr (Out == DType::u8 || Out == DType::s8) v = quantise(v, f.inverse_scale, ep.out_zero);
        store_n<Out>(out + i * static_cast<int>(size_of(Out)), v, n);
    }
}

template <bool Integer>
Finish make_finish(const Epilogue& ep, void* out, int64_t out_stride) {
    Finish f;
    f.ep = &ep;
    f.out = static_cast<char*>(out);
    f.out_stride = out_stride;
    f.inverse_scale = 1 / ep.out_scale;
    with_activation(ep.act, [&](auto act) {
        with_type(ep.out_type, [&](auto type) {
            f.row = finish_row<decltype(act)::value, decltype(type)::value, Integer>;
        });
    });
    return f;
}

}  // namespace
}  // namespace paredown::engine
