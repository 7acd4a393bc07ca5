// Depthwise convolution: a few rows of input as floats in L1, a strip of output pixels in registers.
//
// A unit is a band of output rows of one block of channels. Each input row is converted once, padding
// included, into a ring of rows as high as the kernel; after that every type and every border is the
// same sum: weights in registers, [position][channel], one load for up to as many products as the kernel
// is wide. Sums of 8-bit products are exact in float up to 2^24, which 500 positions do not reach.
#pragma once
#include "kernels_spans.hpp"
#include "kernels_tile_finish.hpp"

namespace paredown::engine {
namespace {

// The ring of rows stays in L1; a row that is too wide for that is cut.
constexpr int64_t kRingBytes = 40 << 10;
#ifdef __AVX512F__
constexpr int kStrip = 14;
#else
constexpr int kStrip = 8;
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

// How one convolution is cut. A tile is what the ring holds of a row, in whole strips of outputs.
struct DepthwisePlan {
    int64_t blocks, bands, band_rows;
    int64_t tiles, tile, strip;
    int64_t slots, columns;  // of the ring
    int64_t sums_at, rows_at;
    size_t scratch;

    explicit DepthwisePlan(const Conv& v) {
        blocks = ceil_div(v.c, kTileChannels);
        // Bands of 14 rows or fewer, and units enough for threads to share, but no halo of its own for
        // less than four rows.
        bands = most(ceil_div(v.out_h, 14), ceil_div(16, v.n * blocks));
        band_rows = least(v.out_h, most(ceil_div(v.out_h, bands), 4));
        bands = ceil_div(v.out_h, band_rows);
        const int64_t reach_w = (v.kw - 1) * v.dilation_w + 1;
        slots = (v.kh - 1) * v.dilation_h + 1;
        const int64_t fits = kRingBytes / (slots * kTileChannels * 4);
        const int64_t widest = most(kStrip, (fits - reach_w) / v.stride_w + 1);
        tiles = ceil_div(v.out_w, widest);
        tile = ceil_div(v.out_w, tiles);
        strip = ceil_div(tile, ceil_div(tile, kStrip));
        tile = round_up(tile, strip);
        tiles = ceil_div(v.out_w, tile);
        columns = (tile - 1) * v.stride_w + reach_w;
        sums_at = slots * columns * kTileChannels * 4;
        rows_at = sums_at + tile * kTileChannels * 4;
        scratch = static_cast<size_t>(round_up(rows_at + v.kh * static_cast<int64_t>(sizeof(float*)), 64));
    }
    int64_t slot() const { return columns * kTileChannels; }  // floats
};

inline int64_t depthwise_units(const Conv& v) {
    const DepthwisePlan p(v);
    return v.n * p.bands * p.blocks;
}
inline size_t depthwise_scratch(const Conv& v) { return DepthwisePlan(v).scratch; }

// Columns [low, high) of one row of the ring, [vector][column][lane], from the pixel of column 0.
template <DType T>
PAREDOWN_INLINE void convert_row(const Conv& v, const char* pixel, int64_t low, int64_t high, int64_t channels,
                                 int64_t columns, float* to) {
    const int64_t step = v.in_stride * static_cast<int64_t>(size_of(T));
    constexpr int64_t width = W * static_cast<int64_t>(size_of(T));
    const F shift = set(static_cast<float>(v.in_zero));
    const auto put = [&](F x, int64_t vector, int64_t column) {
        if constexpr (T == DType::u8 || T == DType::s8) x = x - shift;
        store(to + (vector * columns + column) * W, x);
    };
    if (channels == kTileChannels) {
        for (int64_t x = low; x < high; ++x)
#pragma GCC unroll 4
            for (int i = 0; i < kTileVectors; ++i) put(load_as<T>(pixel + x * step + i * width), i, x);
        return;
    }
    for (int64_t x = low; x < high; ++x)
        for (int64_t i = 0; i * W < channels; ++i)
            put(load_n<T>(pixel + x * step + i * width, 0, static_cast<int>(least(W, channels - i * W))), i, x);
}

// Keeps a vector in its register, and an address as it is: the compiler would rather load a vector again
// for each use, at an address of its own each time.
PAREDOWN_INLINE F held(F x) {
#ifdef __AVX512F__
    asm("" : "+v"(x));
#else
    asm("" : "+x"(x));
#endif
    return x;
}
PAREDOWN_INLINE const float* held(const float* p) {
    asm("" : "+r"(p));
    return p;
}

// Sums of `Strip` neighbouring outputs for one vector of channels. rows[ky]: the ring's row, null outside
// of the image.
template <int Strip, int Kw, int Stride>
void sum_strip(const Conv& v, const float* const* rows, int64_t offset, const float* w, float* sums) {
    F acc[Strip];
    for (F& a : acc) a = zero();
    const int64_t kh = v.kh, w_stride = padded_channels(v.c);
    for (int64_t ky = 0; ky < kh; ++ky, w += Kw * w_stride) {
        if (rows[ky] == nullptr) continue;
        const float* row = held(rows[ky] + offset);
        F weight[Kw];
#pragma GCC unroll 16
        for (int kx = 0; kx < Kw; ++kx) weight[kx] = held(load(w + kx * w_stride));
#pragma GCC unroll 64
        for (int i = 0; i < (Strip - 1) * Stride + Kw; ++i) {
            const F x = held(load(row + i * W));
#pragma GCC unroll 16
            for (int t = 0; t < Strip; ++t) {
                const int kx = i - t * Stride;
                if (kx >= 0 && kx < Kw) acc[t] = fma(x, weight[kx], acc[t]);
            }
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < Strip; ++t) store(sums + t * kTileChannels, acc[t]);
}

// Any kernel width, stride and dilation.
template <int Strip>
void sum_strip_any(const Conv& v, const float* const* rows, int64_t offset, const float* w, float* sums) {
    const int64_t w_stride = padded_channels(v.c);
    for (int t = 0; t < Strip; ++t) {
        F acc = zero();
        for (int64_t ky = 0; ky < v.kh; ++ky) {
            if (rows[ky] == nullptr) continue;
            const float* x = rows[ky] + offset + t * v.stride_w * W;
            for (int64_t kx = 0; kx < v.kw; ++kx)
                acc = fma(load(x + kx * v.dilation_w * W), load(w + (ky * v.kw + kx) * w_stride), acc);
        }
        store(sums + t * kTileChannels, acc);
    }
}

using SumStrip = void (*)(const Conv&, const float* const*, int64_t, const float*, float*);

template <int Strip>
SumStrip choose_strip(const Conv& v) {
    if (v.dilation_w == 1 && v.stride_w == 1) {
        if (v.kw == 1) return sum_strip<Strip, 1, 1>;
        if (v.kw == 3) return sum_strip<Strip, 3, 1>;
        if (v.kw == 5) return sum_strip<Strip, 5, 1>;
        if (v.kw == 7) return sum_strip<Strip, 7, 1>;
        if (v.kw == 11) return sum_strip<Strip, 11, 1>;
    }
    if (v.dilation_w == 1 && v.stride_w == 2) {
        if (v.kw == 3) return sum_strip<Strip, 3, 2>;
        if (v.kw == 5) return sum_strip<Strip, 5, 2>;
        if (v.kw == 7) return sum_strip<Strip, 7, 2>;
    }
    return sum_strip_any<Strip>;
}

template <int Strip = kStrip>
SumStrip strip_of(const Conv& v, int64_t strip) {
    if constexpr (Strip > 1)
        if (strip < Strip) return strip_of<Strip - 1>(v, strip);
    return choose_strip<Strip>(v);
}

// The unit's band of output rows for its block of channels. fill(row of the input, x of column 0, low, high,
// first channel, channels, to) makes columns [low, high) of one row of the ring.
template <typename Fill>
void depthwise_unit(const Conv& v, const DepthwisePlan& p, int64_t unit, char* scratch, Fill&& fill) {
    const int64_t c = unit % p.blocks * kTileChannels, image = unit / p.blocks / p.bands;
    const int64_t first_row = unit / p.blocks % p.bands * p.band_rows;
    const int64_t end_row = least(v.out_h, first_row + p.band_rows);
    const int64_t channels = least(kTileChannels, v.c - c), vectors = ceil_div(channels, W);
    auto* ring = reinterpret_cast<float*>(scratch);
    auto* sums = reinterpret_cast<float*>(scratch + p.sums_at);
    auto* rows = reinterpret_cast<const float**>(scratch + p.rows_at);
    const SumStrip sum = strip_of(v, p.strip);
    const FinishTile finish = finish_tile_of(v.ep);
    const auto* w = static_cast<const float*>(v.w) + c;
    for (int64_t x = 0; x < v.out_w; x += p.tile) {
        const int64_t outputs = least(p.tile, v.out_w - x), first_x = x * v.stride_w - v.pad_left;
        const int64_t low = least(p.columns, most(0, -first_x));
        const int64_t high = most(low, least(p.columns, v.width - first_x));
        // Padding is the number zero; its columns are the same in every row.
        for (int64_t line = 0; line < p.slots * vectors; ++line) {
            float* to = ring + line / vectors * p.slot() + line % vectors * p.columns * W;
            for (int64_t column = 0; column < low; ++column) store(to + column * W, zero());
            for (int64_t column = high; column < p.columns; ++column) store(to + column * W, zero());
        }
        int64_t next = most(0, first_row * v.stride_h - v.pad_top);  // the first row not converted
        for (int64_t oy = first_row; oy < end_row; ++oy) {
            const int64_t top = oy * v.stride_h - v.pad_top, end = least(v.h, top + p.slots);
            for (next = most(next, top); next < end; ++next)
                fill(image * v.h + next, first_x, low, high, c, channels, ring + next % p.slots * p.slot());
            for (int64_t ky = 0; ky < v.kh; ++ky) {
                const int64_t y = top + ky * v.dilation_h;
                rows[ky] = y < 0 || y >= v.h ? nullptr : ring + y % p.slots * p.slot();
            }
            for (int64_t i = 0; i < vectors; ++i)
                for (int64_t t = 0; t < outputs; t += p.strip)
                    sum(v, rows, (i * p.columns + t * v.stride_w) * W, w + i * W, sums + t * kTileChannels + i * W);
            finish(v.ep, sums, (image * v.out_h + oy) * v.out_w + x, outputs, c, channels, v.out, v.out_stride);
        }
    }
}

inline void depthwise(const Conv& v, int64_t begin, int64_t end, void* scratch) {
    const DepthwisePlan p(v);
    with_type(v.in_type, [&](auto type) {
        constexpr DType T = decltype(type)::value;
        const auto fill = [&](int64_t row, int64_t first_x, int64_t low, int64_t high, int64_t c, int64_t channels,
                              float* to) {
            const void* pixel = element(v.in, T, (row * v.width + first_x) * v.in_stride + c);
            convert_row<T>(v, static_cast<const char*>(pixel), low, high, channels, p.columns, to);
        };
        for (int64_t unit = begin; unit < end; ++unit)
            depthwise_unit(v, p, unit, static_cast<char*>(scratch), fill);
    });
}

}  // namespace
}  // namespace paredown::engine
