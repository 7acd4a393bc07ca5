// The readable reference of the kernels that go row by row: norms, softmax, pooling, elementwise, resize.
#include "kernels_common.hpp"
#include "kernels_scalar.hpp"

namespace paredown::engine {
namespace {

template <typename Args>
size_t no_scratch(const Args&) { return 0; }

int64_t pool_units(const Pooling& p) { return p.conv.n * p.conv.out_h; }

void pool(const Pooling& p, int64_t begin, int64_t end, void*) {
    const Conv& v = p.conv;
    const bool max = p.kind == PoolKind::max;
    for (int64_t unit = begin; unit < end; ++unit)
        for (int64_t ox = 0; ox < v.out_w; ++ox)
            for (int64_t c = 0; c < v.c; ++c) {
                const int64_t image = unit / v.out_h, oy = unit % v.out_h;
                double value = max ? -INFINITY : 0;
                int64_t inside = 0;
                for (int64_t ky = 0; ky < v.kh; ++ky)
                    for (int64_t kx = 0; kx < v.kw; ++kx) {
                        const int64_t y = oy * v.stride_h - v.pad_top + ky * v.dilation_h;
                        const int64_t x = ox * v.stride_w - v.pad_left + kx * v.dilation_w;
                        if (y < 0 || y >= v.h || x < 0 || x >= v.width) continue;
                        const int64_t at = ((image * v.h + y) * v.width + x) * v.in_stride + c;
                        const double here = load_one(v.in, v.in_type, at, p.in_scale, v.in_zero);
                        value = !max ? value + here : here > value || here != here ? here : value;
                        ++inside;
                    }
                if (!max)
                    value /= static_cast<double>(p.count_padding ? v.kh * v.kw : most(inside, 1));
                store_one(v.out, v.ep.out_type, (unit * v.out_w + ox) * v.out_stride + c,
                          activate_one(static_cast<float>(value), v.ep.act), v.ep.out_scale,
                          v.ep.out_zero);
            }
}

int64_t global_units(const GlobalPool& p) { return p.n; }

void global_pool(const GlobalPool& p, int64_t begin, int64_t end, void*) {
    for (int64_t image = begin; image < end; ++image)
        for (int64_t c = 0; c < p.c; ++c) {
            double sum = 0;
            for (int64_t i = 0; i < p.pixels; ++i)
                sum += load_one(p.in, p.in_type, (image * p.pixels + i) * p.in_stride + c, p.in_scale,
                                p.in_zero);
            store_one(p.out, p.out_type, image * p.out_stride + c,
                      static_cast<float>(sum / static_cast<double>(p.pixels)), p.out_scale, p.out_zero);
        }
}

int64_t norm_units(const Norm& a) { return a.rows; }

void norm(const Norm& a, int64_t begin, int64_t end, void*) {
    for (int64_t row = begin; row < end; ++row) {
        const int64_t from = a.in_rows == nullptr ? row : a.in_rows[row];
        if (from < 0) {
            for (int64_t i = 0; i < a.cols; ++i)
                store_one(a.out, a.out_type, row * a.out_stride + i, 0, a.out_scale, a.out_zero);
            continue;
        }
        const auto x = [&](int64_t i) {
            float value = load_one(a.in, a.in_type, from * a.in_stride + i);
            if (a.add != nullptr) value += load_one(a.add, a.in_type, row * a.add_stride + i);
            return static_cast<double>(value);
        };
        double mean = 0, square = 0;
        for (int64_t i = 0; i < a.cols; ++i) mean += x(i);
        mean = a.rms ? 0 : mean / static_cast<double>(a.cols);
        for (int64_t i = 0; i < a.cols; ++i) square += (x(i) - mean) * (x(i) - mean);
        const double factor = 1 / std::sqrt(square / static_cast<double>(a.cols) + a.eps);
        for (int64_t i = 0; i < a.cols; ++i) {
            const double here = x(i);  // `sum` may be `in` or `add`
            if (a.sum != nullptr)
                store_one(a.sum, a.in_type, row * a.sum_stride + i, static_cast<float>(here), 1, 0);
            const double v = (here - mean) * factor * (a.gamma != nullptr ? a.gamma[i] : 1.0) +
                             (a.beta != nullptr ? a.beta[i] : 0.0);
            store_one(a.out, a.out_type, row * a.out_stride + i, static_cast<float>(v), a.out_scale,
                      a.out_zero);
        }
    }
}

int64_t softmax_units(const Softmax& a) { return a.rows; }

void softmax(const Softmax& a, int64_t begin, int64_t end, void*) {
    for (int64_t row = begin; row < end; ++row) {
        const auto x = [&](int64_t i) {
            return static_cast<double>(load_one(a.in, a.in_type, row * a.in_stride + i)) * a.scale;
        };
        double top = -INFINITY, sum = 0;
        for (int64_t i = 0; i < a.cols; ++i) top = x(i) > top ? x(i) : top;
        for (int64_t i = 0; i < a.cols; ++i) sum += std::exp(x(i) - top);
        for (int64_t i = 0; i < a.cols; ++i)
            store_one(a.out, a.out_type, row * a.out_stride + i,
                      static_cast<float>(std::exp(x(i) - top) / sum), 1, 0);
    }
}

int64_t eltwise_units(const Eltwise& e) { return e.rows; }

void eltwise(const Eltwise& e, int64_t begin, int64_t end, void*) {
    for (int64_t row = begin; row < end; ++row) {
        const int64_t from = e.a_rows == nullptr ? row : e.a_rows[row];
        for (int64_t col = 0; col < e.cols; ++col) {
            float v = from < 0 ? 0 : load_one(e.a, e.a_type, from * e.a_stride + col, e.a_scale, e.a_zero);
            if (e.op != Binary::none) {
                const float b = load_one(e.b, e.b_type, row / e.b_rows * e.b_stride + col * e.b_col,
                                         e.b_scale, e.b_zero);
                v = e.op == Binary::add ? v + b : e.op == Binary::sub ? v - b : v * b;
            }
            store_one(e.out, e.out_type, row * e.out_stride + col, activate_one(v, e.act), e.out_scale,
                      e.out_zero);
        }
    }
}

// The source coordinate of an output pixel, as torch computes it, in float.
struct Source {
    int64_t low, high;
    float weight;  // of high
};

Source source(int64_t at, int64_t in, int64_t out, float scale, const Resize& r) {
    if (scale == 0)
        scale = r.bilinear && r.align_corners
                    ? (out > 1 ? static_cast<float>(in - 1) / static_cast<float>(out - 1) : 0)
                    : static_cast<float>(in) / static_cast<float>(out);
    if (!r.bilinear) {
        const auto low = least(static_cast<int64_t>(std::floor(static_cast<float>(at) * scale)), in - 1);
        return {low, low, 0};
    }
    float x = r.align_corners ? static_cast<float>(at) * scale
                              : (static_cast<float>(at) + 0.5F) * scale - 0.5F;
    if (x < 0) x = 0;
    const int64_t low = least(static_cast<int64_t>(x), in - 1);
    const float weight = x - static_cast<float>(low);
    return {low, least(low + 1, in - 1), weight < 1 ? weight : 1};
}

int64_t resize_units(const Resize& r) { return r.n * r.out_h; }

void resize(const Resize& r, int64_t begin, int64_t end, void*) {
    for (int64_t unit = begin; unit < end; ++unit) {
        const Source y = source(unit % r.out_h, r.h, r.out_h, r.scale_h, r);
        const int64_t image = unit / r.out_h;
        for (int64_t ox = 0; ox < r.out_w; ++ox) {
            const Source x = source(ox, r.width, r.out_w, r.scale_w, r);
            for (int64_t c = 0; c < r.c; ++c) {
                const auto at = [&](int64_t row, int64_t col) {
                    return load_one(r.in, r.type, ((image * r.h + row) * r.width + col) * r.in_stride + c);
                };
                float v = at(y.low, x.low);
                if (r.bilinear) {
                    const float top = (1 - x.weight) * v + x.weight * at(y.low, x.high);
                    const float bottom =
                        (1 - x.weight) * at(y.high, x.low) + x.weight * at(y.high, x.high);
                    v = (1 - y.weight) * top + y.weight * bottom;
                }
                store_one(r.out, r.type, (unit * r.out_w + ox) * r.out_stride + c, v, 1, 0);
            }
        }
    }
}

// Work is cut by 64 pixels.
constexpr int64_t kPixels = 64;
int64_t transpose_units(const Transpose& t) { return t.n * ceil_div(t.pixels, kPixels); }

void transpose(const Transpose& t, int64_t begin, int64_t end, void*) {
    const int64_t per_image = ceil_div(t.pixels, kPixels);
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t image = unit / per_image, first = unit % per_image * kPixels;
        for (int64_t p = first; p < least(first + kPixels, t.pixels); ++p)
            for (int64_t c = 0; c < t.c; ++c) {
                const int64_t nchw = (image * t.c + c) * t.pixels + p;
                const int64_t nhwc = (image * t.pixels + p) * t.nhwc_stride + c;
                const float v = t.in_type == t.out_type
                                    ? load_one(t.in, t.in_type, t.to_nhwc ? nchw : nhwc)
                                    : load_one(t.in, t.in_type, t.to_nhwc ? nchw : nhwc, t.scale, t.zero);
                const bool copy = t.in_type == t.out_type;
                store_one(t.out, t.out_type, t.to_nhwc ? nhwc : nchw, v, copy ? 1 : t.scale,
                          copy ? 0 : t.zero);
            }
    }
}

}  // namespace

void add_scalar_rows(Kernels& t) {
    t.pool = {pool_units, no_scratch<Pooling>, pool};
    t.global_pool = {global_units, no_scratch<GlobalPool>, global_pool};
    t.norm = {norm_units, no_scratch<Norm>, norm};
    t.softmax = {softmax_units, no_scratch<Softmax>, softmax};
    t.eltwise = {eltwise_units, no_scratch<Eltwise>, eltwise};
    t.resize = {resize_units, no_scratch<Resize>, resize};
    t.transpose = {transpose_units, no_scratch<Transpose>, transpose};
}

}  // namespace paredown::engine
