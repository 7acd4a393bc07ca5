// Geometry of a product as chunks of rows, and the copying of a chunk into scratch where needed.
//
// A chunk is a band of output rows of one image and one (merged) group, or a range of rows of a matrix.
// Inputs that cannot be read in place are copied with their padding, one plane per phase of the
// stride, so that every kernel position is a constant offset and consecutive outputs are a constant
// stride apart. Bands are small enough to stay in L2. With few channels the copy is the matrix of
// columns (im2col) of the band alone.
#pragma once
#include "kernels_layout.hpp"

namespace paredown::engine {
namespace {

constexpr int64_t kBandBytes = 256 << 10;
// Rows of a matrix with their outputs. Small weights are read again for each chunk out of L2, and the
// outputs of one chunk stay there between panels; large weights are read as seldom as possible.
constexpr int64_t kChunkBytes = 256 << 10, kLargeChunkBytes = 1 << 20, kLargeWeights = 512 << 10;
constexpr int64_t kSmallWeights = 64 << 10, kSmallChunkBytes = 32 << 10;
constexpr int64_t kMaxTaps = 1024;
// Rows of a matrix that are cut in two although one chunk would hold them, and the weights that still let them.
constexpr int64_t kFewestOwn = 64, kWeightsToRows = 2;
// Pixels of scratch an even number of cache lines apart push each other out of L1: one line more.
constexpr int64_t kLine = 64, kLongPixel = 512;
constexpr int64_t kSlack = 64;  // rows that tiles may read beyond the last one

struct Geometry {
    Conv v;  // of a matrix: one row of m pixels
    Layout l;
    bool pointwise = false, direct = false, flat = false;
    int64_t bands = 1, band_rows = 1;  // output rows per chunk
    int64_t lines = 1, line = 1, pitch = 1;  // of a full chunk: lines of `line` outputs, `pitch` apart
    int64_t tail = 0;                        // rows of a matrix beyond its two bands (kernels_amx.cpp)
    int64_t row_bytes = 0;                   // between consecutive outputs
    int64_t pixel_bytes = 0;                 // between pixels of scratch
    int64_t phases_h = 1, phases_w = 1, plane_rows = 1, plane_width = 1;
    int64_t columns_at = 0;  // of the column matrix in scratch
    size_t scratch = 0;

    int64_t chunks() const { return v.n * bands * l.groups; }
};

template <Sum S>
Geometry geometry_of(const Conv& given) {
    Geometry g;
    Conv& v = g.v = given;
    g.l = layout_of<S>({v.weight_type, v.out_c, v.c, v.kh, v.kw, v.groups});
    const Layout& l = g.l;
    g.pointwise = l.taps == 1 && v.stride_h == 1 && v.stride_w == 1 && v.pad_top == 0 &&
                  v.pad_left == 0 && v.out_h == v.h && v.out_w == v.width;
    if (g.pointwise) {  // one long row of pixels, cut where it suits
        const int64_t pixels = v.n * v.out_h * v.out_w;
        g.direct = in_place<S>(v.in_type) && l.in * element_size(S) == l.k_bytes;
        const int64_t per_row = l.k_bytes + v.out_c * static_cast<int64_t>(size_of(v.ep.out_type));
        const bool large = l.sums_at() > kLargeWeights;
        const bool small = l.sums_at() <= kSmallWeights;
        const int64_t room = large ? kLargeChunkBytes : small ? kSmallChunkBytes : kChunkBytes;
        const int64_t rows = most(64, room / per_row / 64 * 64);
        v.n = v.h = v.out_h = 1;
        v.width = v.out_w = pixels;
        g.flat = true;
        g.bands = ceil_div(pixels, rows);
        g.band_rows = g.lines = 1;
        // Two threads, each its own rows: they go from one core to another far slower than weights from L3.
        const bool own = pixels >= kFewestOwn && l.sums_at() < kWeightsToRows * pixels * per_row;
        if (g.bands > 1 || own) g.bands = round_up(g.bands, 2);
        g.line = g.pitch = least(round_up(ceil_div(pixels, g.bands), 16), pixels);
        g.bands = ceil_div(pixels, g.line);
        g.row_bytes = g.direct ? v.in_stride * element_size(S) : l.k_bytes;
        g.scratch = static_cast<size_t>((g.direct ? kSlack : g.line + kSlack) * l.k_bytes);
        return g;
    }
    const int64_t reach_h = (v.kh - 1) * v.dilation_h, reach_w = (v.kw - 1) * v.dilation_w;
    const bool aligned = l.tap_bytes >= kLongPixel && l.tap_bytes % (4 * kLine) == 0;
    g.pixel_bytes = l.tap_bytes + (aligned && !l.columns ? kLine : 0);
    int64_t per_row, halo;  // bytes of scratch for one output row, and rows on top
    if (l.columns) {
        g.plane_width = (v.out_w - 1) * v.stride_w + reach_w + 1;
        per_row = g.plane_width * v.stride_h * l.tap_bytes + v.out_w * l.k_bytes;
        halo = 0;
    } else {
        g.phases_h = v.kh == 1 || v.dilation_h % v.stride_h == 0 ? 1 : v.stride_h;
        g.phases_w = v.kw == 1 || v.dilation_w % v.stride_w == 0 ? 1 : v.stride_w;
        g.plane_width = v.out_w + reach_w / v.stride_w;
        per_row = g.phases_h * g.phases_w * g.plane_width * g.pixel_bytes;
        halo = reach_h / v.stride_h;
    }
    g.band_rows = least(v.out_h, most(1, kBandBytes / per_row - halo));
    g.bands = ceil_div(v.out_h, g.band_rows);
    if (g.bands * v.n % 2 != 0 && v.out_h > 8 && v.n < 8) ++g.bands;  // two threads, each its own
    g.band_rows = ceil_div(v.out_h, g.bands);
    g.bands = ceil_div(v.out_h, g.band_rows);
    g.flat = l.columns || g.plane_width == v.out_w;
    g.lines = g.flat ? 1 : g.band_rows;
    g.line = g.flat ? g.band_rows * v.out_w : v.out_w;
    g.pitch = g.flat ? g.line : g.plane_width;
    if (l.columns) {
        g.row_bytes = l.k_bytes;
        g.plane_rows = (g.band_rows - 1) * v.stride_h + reach_h + 1;
        g.columns_at = round_up(g.plane_rows * g.plane_width * l.tap_bytes + 128, 64);
        g.scratch = static_cast<size_t>(g.columns_at + (g.line + kSlack) * l.k_bytes + 128);
    } else {
        g.row_bytes = g.pixel_bytes;
        g.plane_rows = g.band_rows + reach_h / v.stride_h;
        g.scratch = static_cast<size_t>(
            (g.phases_h * g.phases_w * g.plane_rows * g.plane_width + kSlack) * g.pixel_bytes);
    }
    return g;
}

// Byte offsets of the kernel positions from an output's place in scratch.
inline void tap_offsets(const Geometry& g, int64_t* offsets) {
    const Conv& v = g.v;
    if (g.l.columns || g.l.taps == 1) {
        offsets[0] = 0;
        return;
    }
    for (int64_t ky = 0; ky < v.kh; ++ky)
        for (int64_t kx = 0; kx < v.kw; ++kx) {
            const int64_t y = ky * v.dilation_h, x = kx * v.dilation_w;
            const int64_t phase = y % v.stride_h * g.phases_w + x % v.stride_w;
            offsets[ky * v.kw + kx] =
                ((phase * g.plane_rows + y / v.stride_h) * g.plane_width + x / v.stride_w) * g.pixel_bytes;
        }
}

// One row of a plane: pixels x = at * step + first for at in [0, width), padding outside the image.
template <Sum S>
void copy_row(const Conv& v, const char* row, int64_t channels, int64_t tap_bytes, int64_t width,
              int64_t step, int64_t first, int32_t zero_point, char* to) {
    const int64_t size = static_cast<int64_t>(size_of(v.in_type)), stride = v.in_stride * size;
    const int64_t dense = channels * element_size(S);
    int64_t low = first < 0 ? ceil_div(-first, step) : 0;
    int64_t high = first >= v.width ? 0 : (v.width - 1 - first) / step + 1;
    low = least(low, width);
    high = most(low, least(high, width));
    const auto padding = [&](int64_t begin, int64_t end) {
        if (dense == tap_bytes) return fill_zero<S>(to + begin * dense, (end - begin) * channels, zero_point);
        for (int64_t at = begin; at < end; ++at) {
            std::memset(to + at * tap_bytes, 0, static_cast<size_t>(tap_bytes));
            fill_zero<S>(to + at * tap_bytes, channels, zero_point);
        }
    };
    padding(0, row == nullptr ? width : low);
    if (row == nullptr) return;
    const char* from = row + (low * step + first) * stride;
    if (step == 1 && dense == tap_bytes && v.in_stride == channels) {
        convert<S>(from, v.in_type, to + low * dense, (high - low) * channels);
    } else {
        for (int64_t at = low; at < high; ++at, from += step * stride) {
            char* pixel = to + at * tap_bytes;
            convert<S>(from, v.in_type, pixel, channels);
            if (dense < tap_bytes) std::memset(pixel + dense, 0, static_cast<size_t>(tap_bytes - dense));
        }
    }
    padding(high, width);
}

// `bytes` bytes, at most a vector's, and zeros up to a whole one.
PAREDOWN_INLINE void copy_and_clear(const char* from, char* to, int64_t bytes) {
#ifdef __AVX512BW__
    _mm512_storeu_si512(to, _mm512_maskz_loadu_epi8(~uint64_t(0) >> (64 - bytes), from));
#else
    std::memset(to, 0, 4 * W);
    std::memcpy(to, from, static_cast<size_t>(bytes));
#endif
}

// The columns of one band from its padded rows.
inline void copy_columns(const Geometry& g, int64_t rows, const char* padded, char* to) {
    const Conv& v = g.v;
    const int64_t pixel = g.l.tap_bytes, dense = g.l.taps * pixel;
    const bool runs = v.dilation_w == 1;
    const int64_t run = runs ? v.kw * pixel : pixel, parts = runs ? 1 : v.kw;
    // The last vector of a cell ends in zeros; what is behind it, in `rest` bytes, has to be cleared.
    const int64_t last = run % (4 * W) == 0 ? 4 * W : run % (4 * W);
    const int64_t rest = most(0, g.l.k_bytes - dense - (4 * W - last));
    for (int64_t line = 0; line < rows; ++line)
        for (int64_t x = 0; x < v.out_w; ++x, to += g.l.k_bytes) {
            char* cell = to;
            const char* row = nullptr;
            for (int64_t ky = 0; ky < v.kh; ++ky)
                for (int64_t kx = 0; kx < parts; ++kx, cell += run) {
                    row = padded + ((line * v.stride_h + ky * v.dilation_h) * g.plane_width + x * v.stride_w +
                                    kx * v.dilation_w) * pixel;
                    for (int64_t i = 0; i < run; i += 4 * W) {  // may run over: the next run mends it
                        F bytes;
                        std::memcpy(&bytes, row + i, sizeof bytes);
                        std::memcpy(cell + i, &bytes, sizeof bytes);
                    }
                }
            copy_and_clear(row + run - last, cell - last, last);
            if (rest > 0) std::memset(to + g.l.k_bytes - rest, 0, static_cast<size_t>(rest));
        }
}

// Brings chunk (image, band, group) into place and returns its first output's address.
template <Sum S>
const char* prepare(const Geometry& g, int64_t image, int64_t band, int64_t group, char* scratch) {
    const Conv& v = g.v;
    const int64_t size = static_cast<int64_t>(size_of(v.in_type));
    const char* in = static_cast<const char*>(v.in) + group * g.l.in * size;
    const int32_t zero_point = converted_zero<S>(v.in_type, v.in_zero);
    if (g.pointwise) {
        const int64_t first = band * g.line, rows = least(g.line, v.out_w - first);
        const char* from = in + first * v.in_stride * size;
        if (g.direct) return from;
        Conv row = v;
        row.width = rows;
        copy_row<S>(row, from, g.l.in, g.l.tap_bytes, rows, 1, 0, zero_point, scratch);
        return scratch;
    }
    const int64_t top = band * g.band_rows, rows = least(g.band_rows, v.out_h - top);
    const auto row_of = [&](int64_t y) {
        return y < 0 || y >= v.h ? nullptr : in + (image * v.h + y) * v.width * v.in_stride * size;
    };
    const int64_t reach_h = (v.kh - 1) * v.dilation_h;
    if (g.l.columns) {
        const int64_t rows_in = (rows - 1) * v.stride_h + reach_h + 1;
        for (int64_t r = 0; r < rows_in; ++r)
            copy_row<S>(v, row_of(top * v.stride_h - v.pad_top + r), g.l.in, g.l.tap_bytes, g.plane_width, 1,
                        -v.pad_left, zero_point, scratch + r * g.plane_width * g.l.tap_bytes);
        copy_columns(g, rows, scratch, scratch + g.columns_at);
        return scratch + g.columns_at;
    }
    for (int64_t py = 0; py < g.phases_h; ++py)
        for (int64_t px = 0; px < g.phases_w; ++px) {
            char* plane = scratch + (py * g.phases_w + px) * g.plane_rows * g.plane_width * g.pixel_bytes;
            for (int64_t r = 0; r < rows + reach_h / v.stride_h; ++r)
                copy_row<S>(v, row_of((top + r) * v.stride_h + py - v.pad_top), g.l.in, g.pixel_bytes,
                            g.plane_width, v.stride_w, px - v.pad_left, zero_point,
                            plane + r * g.plane_width * g.pixel_bytes);
        }
    return scratch;
}

}  // namespace
}  // namespace paredown::engine
