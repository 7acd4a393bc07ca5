// Pooling, resizing and layout changes: vectors over the channels of NHWC pixels.
#pragma once
#include "kernels_spans.hpp"

namespace paredown::engine {
namespace {

constexpr int64_t kLanes = 4 * W;  // channels taken together, in registers

// f(channel, lanes of each of four vectors) over blocks of kLanes channels.
struct Lanes {
    int n[4];
    int vectors;
    Lanes(int64_t channels, int64_t from) : n{}, vectors(0) {
        for (int i = 0; i < 4 && from + i * W < channels; ++i, ++vectors)
            n[i] = static_cast<int>(least(W, channels - from - i * W));
    }
};

inline int64_t pool_units(const Pooling& p) { return p.conv.n * p.conv.out_h; }
template <typename Args>
size_t nothing(const Args&) { return 0; }

template <DType T, bool Max>
void pool_row(const Pooling& p, int64_t unit) {
    const Conv& v = p.conv;
    const int64_t image = unit / v.out_h, oy = unit % v.out_h;
    const auto* in = static_cast<const char*>(v.in);
    const bool quantised_in = is_quantised(T);
    const Late activate_late(v.ep.act);
    // Sums of stored numbers; zero point and scale come off once, at the end.
    for (int64_t ox = 0; ox < v.out_w; ++ox)
        for (int64_t c = 0; c < v.c; c += kLanes) {
            const Lanes lanes(v.c, c);
            F acc[4];
            for (F& x : acc) x = set(Max ? -INFINITY : 0.0F);
            int64_t inside = 0;
            for (int64_t ky = 0; ky < v.kh; ++ky) {
                const int64_t y = oy * v.stride_h - v.pad_top + ky * v.dilation_h;
                if (y < 0 || y >= v.h) continue;
                for (int64_t kx = 0; kx < v.kw; ++kx) {
                    const int64_t x = ox * v.stride_w - v.pad_left + kx * v.dilation_w;
                    if (x < 0 || x >= v.width) continue;
                    const int64_t at = ((image * v.h + y) * v.width + x) * v.in_stride + c;
                    for (int i = 0; i < lanes.vectors; ++i) {
                        const F here = load_n<T>(in, at + i * W, lanes.n[i]);
                        acc[i] = Max ? keep_nan(acc[i], max(acc[i], here)) : acc[i] + here;
                    }
                    ++inside;
                }
            }
            const float zero_point = quantised_in ? static_cast<float>(v.in_zero) : 0;
            const float scale = (quantised_in ? p.in_scale : 1) /
                                (Max ? 1 : static_cast<float>(p.count_padding ? v.kh * v.kw : most(inside, 1)));
            const float shift = Max ? zero_point : zero_point * static_cast<float>(inside);
            for (int i = 0; i < lanes.vectors; ++i) {
                const F out = activate_late((acc[i] - set(shift)) * set(scale));
                store_value(v.out, v.ep.out_type, (unit * v.out_w + ox) * v.out_stride + c + i * W, out,
                            lanes.n[i], 1 / v.ep.out_scale, v.ep.out_zero);
            }
        }
}

inline void pool(const Pooling& p, int64_t begin, int64_t end, void*) {
    with_type(p.conv.in_type, [&](auto t) {
        constexpr DType T = decltype(t)::value;
        for (int64_t unit = begin; unit < end; ++unit)
            p.kind == PoolKind::max ? pool_row<T, true>(p, unit) : pool_row<T, false>(p, unit);
    });
}

inline int64_t global_units(const GlobalPool& p) { return p.n * ceil_div(p.c, kLanes); }

inline void global_pool(const GlobalPool& p, int64_t begin, int64_t end, void*) {
    const int64_t blocks = ceil_div(p.c, kLanes);
    with_type(p.in_type, [&](auto t) {
        constexpr DType T = decltype(t)::value;
        const float scale = (is_quantised(T) ? p.in_scale : 1) / static_cast<float>(p.pixels);
        const float shift = is_quantised(T) ? static_cast<float>(p.in_zero) * static_cast<float>(p.pixels) : 0;
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t image = unit / blocks, c = unit % blocks * kLanes;
            const Lanes lanes(p.c, c);
            F acc[4] = {zero(), zero(), zero(), zero()};
            for (int64_t i = 0; i < p.pixels; ++i) {
                const int64_t at = (image * p.pixels + i) * p.in_stride + c;
                for (int j = 0; j < lanes.vectors; ++j)
                    acc[j] = acc[j] + load_n<T>(p.in, at + j * W, lanes.n[j]);
            }
            for (int j = 0; j < lanes.vectors; ++j)
                store_value(p.out, p.out_type, image * p.out_stride + c + j * W,
                            (acc[j] - set(shift)) * set(scale), lanes.n[j], 1 / p.out_scale, p.out_zero);
        }
    });
}

// ---- resize

struct Source {
    int64_t low, high;
    float weight;  // of high
};

inline Source source(int64_t at, int64_t in, int64_t out, float scale, const Resize& r) {
    if (scale == 0)
        scale = r.bilinear && r.align_corners
                    ? (out > 1 ? static_cast<float>(in - 1) / static_cast<float>(out - 1) : 0)
                    : static_cast<float>(in) / static_cast<float>(out);
    if (!r.bilinear) {
        const int64_t low = least(static_cast<int64_t>(static_cast<float>(at) * scale), in - 1);
        return {low, low, 0};
    }
    float x = r.align_corners ? static_cast<float>(at) * scale
                              : (static_cast<float>(at) + 0.5F) * scale - 0.5F;
    if (x < 0) x = 0;
    const int64_t low = least(static_cast<int64_t>(x), in - 1);
    const float weight = x - static_cast<float>(low);
    return {low, least(low + 1, in - 1), weight < 1 ? weight : 1};
}

inline int64_t resize_units(const Resize& r) { return r.n * r.out_h; }

inline void resize(const Resize& r, int64_t begin, int64_t end, void*) {
    with_type(r.type, [&](auto t) {
        constexpr DType T = decltype(t)::value;
        for (int64_t unit = begin; unit < end; ++unit) {
            const Source y = source(unit % r.out_h, r.h, r.out_h, r.scale_h, r);
            const int64_t image = unit / r.out_h;
            for (int64_t ox = 0; ox < r.out_w; ++ox) {
                const Source x = source(ox, r.width, r.out_w, r.scale_w, r);
                const auto at = [&](int64_t row, int64_t col) {
                    return element(r.in, T, ((image * r.h + row) * r.width + col) * r.in_stride);
                };
                void* out = element(r.out, T, (unit * r.out_w + ox) * r.out_stride);
                if (!r.bilinear) {
                    std::memcpy(out, at(y.low, x.low), static_cast<size_t>(r.c) * size_of(T));
                    continue;
                }
                const void *a = at(y.low, x.low), *b = at(y.low, x.high);
                const void *c = at(y.high, x.low), *d = at(y.high, x.high);
                each_vector(r.c, [&](int64_t i, int n) {
                    const F top = set(1 - x.weight) * load_n<T>(a, i, n) + set(x.weight) * load_n<T>(b, i, n);
                    const F bottom =
                        set(1 - x.weight) * load_n<T>(c, i, n) + set(x.weight) * load_n<T>(d, i, n);
                    F v = set(1 - y.weight) * top + set(y.weight) * bottom;
                    if constexpr (T == DType::u8 || T == DType::s8) v = nearest(v);
                    store_n<T>(element(out, T, i), v, n);
                });
            }
        }
    });
}

// ---- NCHW <-> NHWC, 256 pixels at a time through a float buffer (channels, 256)

constexpr int64_t kPixels = 256, kChannels = 16;

inline int64_t transpose_units(const Transpose& t) { return t.n * ceil_div(t.pixels, kPixels); }
inline size_t transpose_scratch(const Transpose&) { return 2 * kPixels * kChannels * sizeof(float); }

// (c, p) -> (p, c) for a block; both dense. Few channels go by interleaving vectors where possible.
inline void turn(const float* from, int64_t c, int64_t from_stride, int64_t p, float* to, int64_t to_stride) {
    for (int64_t j = 0; j < p; ++j)
        for (int64_t i = 0; i < c; ++i) to[j * to_stride + i] = from[i * from_stride + j];
}

#ifdef __AVX512F__
// Three rows of pixels to triples: each output vector takes lanes of all three.
inline void turn_three(const float* from, int64_t from_stride, int64_t p, float* to) {
    alignas(64) int32_t pick[3][2][16];
    __mmask16 from_last[3];
    for (int v = 0; v < 3; ++v) {
        from_last[v] = 0;
        for (int lane = 0; lane < 16; ++lane) {
            const int at = v * 16 + lane, row = at % 3, pixel = at / 3;
            pick[v][0][lane] = row == 1 ? 16 + pixel : pixel;
            pick[v][1][lane] = pixel;
            if (row == 2) from_last[v] = static_cast<__mmask16>(from_last[v] | (1U << lane));
        }
    }
    for (int64_t j = 0; j < p; j += 16) {
        const F a = load(from + j), b = load(from + from_stride + j), c = load(from + 2 * from_stride + j);
        for (int v = 0; v < 3; ++v) {
            const F ab = _mm512_permutex2var_ps(a, load(pick[v][0]), b);
            const F all = _mm512_mask_permutexvar_ps(ab, from_last[v], load(pick[v][1]), c);
            store(to + j * 3 + v * 16, all);
        }
    }
}
#endif

inline void transpose(const Transpose& t, int64_t begin, int64_t end, void* scratch) {
    auto* planes = static_cast<float*>(scratch);
    float* pixels = planes + kPixels * kChannels;
    const int64_t per_image = ceil_div(t.pixels, kPixels);
    const bool same = t.in_type == t.out_type;
    const float scale = same ? 1 : t.scale;
    const int32_t zero_point = same ? 0 : t.zero;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t image = unit / per_image, first = unit % per_image * kPixels;
        const int64_t p = least(kPixels, t.pixels - first);
        for (int64_t c = 0; c < t.c; c += kChannels) {
            const int64_t channels = least(kChannels, t.c - c);
            const auto nchw = [&](int64_t i) { return (image * t.c + c + i) * t.pixels + first; };
            const auto nhwc = [&](int64_t j) { return (image * t.pixels + first + j) * t.nhwc_stride + c; };
            const bool dense = channels == t.c && t.nhwc_stride == t.c;
            if (t.to_nhwc) {
                for (int64_t i = 0; i < channels; ++i)
                    load_span(t.in, t.in_type, nchw(i), p, scale, zero_point, planes + i * kPixels);
#ifdef __AVX512F__
                if (channels == 3)
                    turn_three(planes, kPixels, p, pixels);  // may write beyond p, within the buffer
                else
#endif
                    turn(planes, channels, kPixels, p, pixels, channels);
                for (int64_t j = 0; j < (dense ? 1 : p); ++j)
                    store_span(pixels + j * channels, dense ? p * channels : channels, t.out, t.out_type,
                               nhwc(j), scale, zero_point);
            } else {
                for (int64_t j = 0; j < (dense ? 1 : p); ++j)
                    load_span(t.in, t.in_type, nhwc(j), dense ? p * channels : channels, scale, zero_point,
                              pixels + j * channels);
                for (int64_t i = 0; i < channels; ++i) {
                    for (int64_t j = 0; j < p; ++j) planes[j] = pixels[j * channels + i];
                    store_span(planes, p, t.out, t.out_type, nchw(i), scale, zero_point);
                }
            }
        }
    }
}

}  // namespace
}  // namespace paredown::engine
