// The epilogue of kernels that sum a run of pixels over one block of channels: sums [pixel][channel].
#pragma once
#include "kernels_clamp.hpp"

namespace paredown::engine {
namespace {

constexpr int64_t kTileChannels = 32;  // a cache line of bf16
constexpr int kTileVectors = kTileChannels / W;

// Outputs `row` to `row + pixels`, columns [c, c + channels); columns beyond are not touched.
template <Act A, DType Out>
void finish_tile(const Epilogue& ep, const float* sums, int64_t row, int64_t pixels, int64_t c, int64_t channels,
                 void* out, int64_t out_stride) {
    constexpr int64_t size = static_cast<int64_t>(size_of(Out));
    constexpr bool fast = Out != DType::f32;
    const float inverse = 1 / ep.out_scale;
    F scale[kTileVectors], bias[kTileVectors];
    int lanes[kTileVectors];
    for (int i = 0; i < kTileVectors; ++i) {
        const int n = lanes[i] = static_cast<int>(most(0, least(W, channels - i * W)));
        scale[i] = ep.scale == nullptr ? set(1) : load_first<DType::f32>(ep.scale + c + i * W, n);
        bias[i] = ep.bias == nullptr ? zero() : load_first<DType::f32>(ep.bias + c + i * W, n);
    }
    char* to = static_cast<char*>(out) + (row * out_stride + c) * size;
    if (channels == kTileChannels) {
        if constexpr (folds(A, Out)) {
            const Clamp<Out> clamp(A, inverse, ep.out_zero);
            for (int i = 0; i < kTileVectors; ++i) fold(scale[i], bias[i], inverse, ep.out_zero);
            for (int64_t pixel = 0; pixel < pixels; ++pixel, to += out_stride * size)
#pragma GCC unroll 4
                for (int i = 0; i < kTileVectors; ++i)
                    clamp.put(to + i * W, fma(load(sums + pixel * kTileChannels + i * W), scale[i], bias[i]));
            return;
        }
        const auto whole = [&](int64_t pixel, int i) {
            const F v = activate<A, fast>(fma(load(sums + pixel * kTileChannels + i * W), scale[i], bias[i]));
            return in_units<Out>(v, inverse, ep.out_zero);
        };
        for (int64_t pixel = 0; pixel < pixels; ++pixel, to += out_stride * size)
#pragma GCC unroll 4
            for (int i = 0; i < kTileVectors; i += 2)
                store_pair<Out>(to + i * W * size, whole(pixel, i), whole(pixel, i + 1));
        return;
    }
    for (int64_t pixel = 0; pixel < pixels; ++pixel, to += out_stride * size)
        for (int i = 0; i < kTileVectors && lanes[i] > 0; ++i) {
            const F v = activate<A, fast>(fma(load(sums + pixel * kTileChannels + i * W), scale[i], bias[i]));
            store_n<Out>(to + i * W * size, in_units<Out>(v, inverse, ep.out_zero), lanes[i]);
        }
}

// The same with a residual, its activation looked at for every vector.
template <DType Out>
void add_tile(const Epilogue& ep, const float* sums, int64_t row, int64_t pixels, int64_t c, int64_t channels,
              void* out, int64_t out_stride) {
    const Late activate_late(ep.act);
    const float inverse = 1 / ep.out_scale;
    for (int64_t i = 0; i < channels; i += W) {
        const int n = static_cast<int>(least(W, channels - i));
        const F scale = ep.scale == nullptr ? set(1) : load_first<DType::f32>(ep.scale + c + i, n);
        const F bias = ep.bias == nullptr ? zero() : load_first<DType::f32>(ep.bias + c + i, n);
        char* to = static_cast<char*>(out) + (row * out_stride + c + i) * static_cast<int64_t>(size_of(Out));
        for (int64_t pixel = 0; pixel < pixels; ++pixel, to += out_stride * static_cast<int64_t>(size_of(Out))) {
            const F v = fma(load(sums + pixel * kTileChannels + i), scale, bias);
            const F r = load_value(ep.residual, ep.residual_type, (row + pixel) * ep.residual_stride + c + i, n,
                                   ep.residual_scale, ep.residual_zero);
            const F sum = ep.residual_after ? activate_late(v) + r : activate_late(v + r);
            store_n<Out>(to, in_units<Out>(sum, inverse, ep.out_zero), n);
        }
    }
}

using FinishTile = void (*)(const Epilogue&, const float*, int64_t, int64_t, int64_t, int64_t, void*, int64_t);

inline FinishTile finish_tile_of(const Epilogue& ep) {
    FinishTile f = nullptr;
    with_type(ep.out_type, [&](auto type) {
        constexpr DType T = decltype(type)::value;
        f = add_tile<T>;
        if (ep.residual != nullptr) return;
        with_activation(ep.act, [&](auto act) { f = finish_tile<decltype(act)::value, T>; });
    });
    return f;
}

}  // namespace
}  // namespace paredown::engine
