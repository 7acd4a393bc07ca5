// Depthwise convolution: vectors over channels, a strip of output pixels in registers.
//
// Weights are floats for every type, [position][channel]; sums of 8-bit products are exact in float up to
// 2^24, which 500 positions do not reach. An input vector is converted once and used by every output of
// the strip that it meets.
#pragma once
#include "kernels_spans.hpp"

namespace paredown::engine {
namespace {

constexpr int64_t kStripChannels = 128;
#ifdef __AVX512F__
constexpr int kStrip = 8;
#else
constexpr int kStrip = 4;
#endif

inline int64_t padded_channels(int64_t c) { return round_up(c, W); }

inline size_t packed_depthwise_size(const Weights& w) {
    return static_cast<size_t>(w.kh * w.kw * padded_channels(w.out)) * sizeof(float);
}

inline void pack_depthwise(const Weights& w, const void* from, void* to) {
    auto* out = static_cast<float*>(to);
    const int64_t taps = w.kh * w.kw, c = padded_channels(w.out);
    for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t i = 0; i < c; ++i) {
            float value = i < w.out ? load_one(from, w.type == DType::s8 ? DType::s8 : DType::f32, i * taps + tap)
                                    : 0;
            if (w.type == DType::bf16) value = from_bf16(to_bf16(value));
            out[tap * c + i] = value;
        }
}

// Channel blocks make units out of images with few rows.
inline int64_t channel_parts(const Conv& v) {
    return v.n * v.out_h >= 32 ? 1 : ceil_div(v.c, kStripChannels);
}
inline int64_t depthwise_units(const Conv& v) { return v.n * v.out_h * channel_parts(v); }
inline size_t depthwise_scratch(const Conv&) { return kStrip * kStripChannels * sizeof(float); }

// acc of one vector of channels for `Strip` outputs from x0: kernel width and stride known.
template <DType T, int Kw, int Stride, bool Inside>
PAREDOWN_INLINE void strip(const Conv& v, const char* const* rows, int64_t first_x, int64_t c, int n,
                           int outputs, F shift, float* sums) {
    F acc[kStrip];
    for (F& a : acc) a = zero();
    const auto* w = static_cast<const float*>(v.w) + c;
    const int64_t w_stride = padded_channels(v.c);
    const int64_t pixel = v.in_stride * static_cast<int64_t>(size_of(T));
    for (int64_t ky = 0; ky < v.kh; ++ky, w += Kw * w_stride) {
        if (rows[ky] == nullptr) continue;
        const char* row = rows[ky] + first_x * pixel + c * static_cast<int64_t>(size_of(T));
        F weight[Kw];
#pragma GCC unroll 16
        for (int kx = 0; kx < Kw; ++kx) weight[kx] = load(w + kx * w_stride);
#pragma GCC unroll 32
        for (int i = 0; i < (kStrip - 1) * Stride + Kw; ++i) {
            if (!Inside && (first_x + i < 0 || first_x + i >= v.width)) continue;
            F x = n == W ? load_as<T>(row + i * pixel) : load_first<T>(row + i * pixel, n);
            if constexpr (T == DType::u8 || T == DType::s8) x = x - shift;
#pragma GCC unroll 16
            for (int t = 0; t < kStrip; ++t) {
                const int kx = i - t * Stride;
                if (kx >= 0 && kx < Kw) acc[t] = fma(x, weight[kx], acc[t]);
            }
        }
    }
    for (int t = 0; t < outputs; ++t) store(sums + t * kStripChannels, acc[t]);
}

// Any kernel width, stride and dilation.
template <DType T>
void strip_any(const Conv& v, const char* const* rows, int64_t first_x, int64_t c, int n, int outputs, F shift,
               float* sums) {
    const int64_t w_stride = padded_channels(v.c);
    for (int t = 0; t < outputs; ++t) {
        F acc = zero();
        for (int64_t ky = 0; ky < v.kh; ++ky) {
            if (rows[ky] == nullptr) continue;
            for (int64_t kx = 0; kx < v.kw; ++kx) {
                const int64_t x = first_x + t * v.stride_w + kx * v.dilation_w;
                if (x < 0 || x >= v.width) continue;
                F here = load_n<T>(rows[ky], x * v.in_stride + c, n);
                if constexpr (T == DType::u8 || T == DType::s8) here = here - shift;
                acc = fma(here, load(static_cast<const float*>(v.w) + (ky * v.kw + kx) * w_stride + c), acc);
            }
        }
        store(sums + t * kStripChannels, acc);
    }
}

using Strip = void (*)(const Conv&, const char* const*, int64_t, int64_t, int, int, F, float*);

template <DType T, int Kw, int Stride, bool Inside>
void strip_of(const Conv& v, const char* const* rows, int64_t first_x, int64_t c, int n, int outputs, F shift,
              float* sums) {
    strip<T, Kw, Stride, Inside>(v, rows, first_x, c, n, outputs, shift, sums);
}

template <DType T, bool Inside>
Strip choose_strip(const Conv& v) {
    if (v.dilation_w != 1) return strip_any<T>;
    if (v.kw == 1 && v.stride_w == 1) return strip_of<T, 1, 1, Inside>;
    if (v.kw == 3 && v.stride_w == 1) return strip_of<T, 3, 1, Inside>;
    if (v.kw == 3 && v.stride_w == 2) return strip_of<T, 3, 2, Inside>;
    if (v.kw == 5 && v.stride_w == 1) return strip_of<T, 5, 1, Inside>;
    if (v.kw == 5 && v.stride_w == 2) return strip_of<T, 5, 2, Inside>;
    if (v.kw == 7 && v.stride_w == 1) return strip_of<T, 7, 1, Inside>;
    if (v.kw == 11 && v.stride_w == 1) return strip_of<T, 11, 1, Inside>;
    return strip_any<T>;
}

// One row of sums, columns [column, column + count), through the epilogue.
template <Act A, DType Out>
void finish_span(const Epilogue& ep, const float* sums, int64_t row, int64_t column, int64_t count, void* out,
                 int64_t out_stride) {
    const float inverse = 1 / ep.out_scale;
    void* to = element(out, Out, row * out_stride + column);
    each_vector(count, [&](int64_t i, int n) {
        F v = load(sums + i);
        if (ep.scale != nullptr) v = v * load_n<DType::f32>(ep.scale + column, i, n);
        if (ep.bias != nullptr) v = v + load_n<DType::f32>(ep.bias + column, i, n);
        constexpr bool fast = Out != DType::f32;
        if (ep.residual != nullptr) {
            const F r = load_value(ep.residual, ep.residual_type, row * ep.residual_stride + column + i, n,
                                   ep.residual_scale, ep.residual_zero);
            v = ep.residual_after ? activate<A, fast>(v) + r : activate<A, fast>(v + r);
        } else {
            v = activate<A, fast>(v);
        }
        if constexpr (Out == DType::u8 || Out == DType::s8) v = quantise(v, inverse, ep.out_zero);
        store_n<Out>(element(to, Out, i), v, n);
    });
}

using FinishSpan = void (*)(const Epilogue&, const float*, int64_t, int64_t, int64_t, void*, int64_t);

inline FinishSpan finish_span_of(const Epilogue& ep) {
    FinishSpan f = nullptr;
    with_activation(ep.act, [&](auto act) {
        with_type(ep.out_type,
                  [&](auto type) { f = finish_span<decltype(act)::value, decltype(type)::value>; });
    });
    return f;
}

// Outputs [0, out_w) of one output row, channels [c_begin, c_end). rows[ky]: pixel 0 of each input row.
template <DType T>
void depthwise_row(const Conv& v, const char* const* rows, int64_t out_row, int64_t c_begin, int64_t c_end,
                   FinishSpan finish, float* sums) {
    const Strip inside = choose_strip<T, true>(v), edge = choose_strip<T, false>(v);
    const F shift = set(static_cast<float>(v.in_zero));
    const int64_t reach = (kStrip - 1) * v.stride_w + v.kw;
    for (int64_t x = 0; x < v.out_w; x += kStrip) {
        const int outputs = static_cast<int>(least(kStrip, v.out_w - x));
        const int64_t first_x = x * v.stride_w - v.pad_left;
        const bool is_inside = first_x >= 0 && first_x + reach <= v.width;
        for (int64_t block = c_begin; block < c_end; block += kStripChannels) {
            const int64_t count = least(kStripChannels, c_end - block);
            each_vector(count, [&](int64_t i, int n) {
                (is_inside ? inside : edge)(v, rows, first_x, block + i, n, outputs, shift, sums + i);
            });
            for (int t = 0; t < outputs; ++t)
                finish(v.ep, sums + t * kStripChannels, out_row + x + t, block, count, v.out, v.out_stride);
        }
    }
}

inline void depthwise(const Conv& v, int64_t begin, int64_t end, void* scratch) {
    constexpr int64_t max_rows = 64;
    auto* sums = static_cast<float*>(scratch);
    const FinishSpan finish = finish_span_of(v.ep);
    const int64_t parts = channel_parts(v), size = static_cast<int64_t>(size_of(v.in_type));
    const int64_t per_part = parts == 1 ? v.c : kStripChannels;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t part = unit % parts, oy = unit / parts % v.out_h, image = unit / parts / v.out_h;
        const char* rows[max_rows] = {};
        for (int64_t ky = 0; ky < v.kh; ++ky) {
            const int64_t y = oy * v.stride_h - v.pad_top + ky * v.dilation_h;
            if (y >= 0 && y < v.h)
                rows[ky] = static_cast<const char*>(v.in) + (image * v.h + y) * v.width * v.in_stride * size;
        }
        const int64_t c = part * per_part;
        with_type(v.in_type, [&](auto t) {
            depthwise_row<decltype(t)::value>(v, rows, (image * v.out_h + oy) * v.out_w, c,
                                              least(v.c, c + per_part), finish, sums);
        });
    }
}

}  // namespace
}  // namespace paredown::engine
