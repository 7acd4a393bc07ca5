// Norms, softmax and elementwise operators: rows of contiguous values through a float buffer in L1.
#pragma once
#include "kernels_spans.hpp"

namespace paredown::engine {
namespace {

inline size_t row_scratch(int64_t cols) { return static_cast<size_t>(round_up(cols, W) + W) * 4; }

// ---- layer norm, RMS norm

inline int64_t norm_units(const Norm& a) { return a.rows; }
inline size_t norm_scratch(const Norm& a) { return row_scratch(a.cols); }

// x = in, and x += add where given; returns the sum.
template <DType T>
float norm_read(const Norm& a, int64_t from, int64_t row, float* x) {
    const void* in = element(a.in, T, from * a.in_stride);
    const auto read = [&](const void* from, int64_t i, int n) { return load_n<T>(from, i, n); };
    if (a.add == nullptr)
        return sum_lanes(sum_vectors(a.cols, [&](int64_t i, int n) {
            const F v = read(in, i, n);
            store_n<DType::f32>(x + i, v, n);
            return v;
        }));
    const void* add = element(a.add, T, row * a.add_stride);
    return sum_lanes(sum_vectors(a.cols, [&](int64_t i, int n) {
        const F v = read(in, i, n) + read(add, i, n);
        store_n<DType::f32>(x + i, v, n);
        return v;
    }));
}

// out = (x - mean) * factor * gamma + beta, in the output's type.
template <DType T>
void norm_write(const Norm& a, int64_t row, const float* x, float mean, float factor) {
    void* out = element(a.out, T, row * a.out_stride);
    const float inverse = 1 / a.out_scale;
    each_vector(a.cols, [&](int64_t i, int n) {
        F v = (load_n<DType::f32>(x, i, n) - set(mean)) * set(factor);
        if (a.gamma != nullptr) v = v * load_n<DType::f32>(a.gamma, i, n);
        if (a.beta != nullptr) v = v + load_n<DType::f32>(a.beta, i, n);
        if constexpr (T == DType::u8 || T == DType::s8) v = quantise(v, inverse, a.out_zero);
        store_n<T>(element(out, T, i), v, n);
    });
}

inline void norm(const Norm& a, int64_t begin, int64_t end, void* scratch) {
    auto* x = static_cast<float*>(scratch);
    const float inverse_cols = 1 / static_cast<float>(a.cols);
    for (int64_t row = begin; row < end; ++row) {
        const int64_t from = a.in_rows == nullptr ? row : a.in_rows[row];
        if (from < 0) {
            std::memset(x, 0, static_cast<size_t>(a.cols) * 4);
            store_span(x, a.cols, a.out, a.out_type, row * a.out_stride, a.out_scale, a.out_zero);
            continue;
        }
        float sum = 0;
        with_type(a.in_type, [&](auto t) { sum = norm_read<decltype(t)::value>(a, from, row, x); });
        if (a.sum != nullptr) store_span(x, a.cols, a.sum, a.in_type, row * a.sum_stride, 1, 0);
        // Two passes over L1: the sum of squares of differences loses no digits to a large mean.
        const float mean = a.rms ? 0 : sum * inverse_cols;
        const F squares = sum_vectors(a.cols, [&](int64_t i, int n) {
            F d = load_n<DType::f32>(x, i, n) - set(mean);
            if (n < W) {  // lanes beyond the row are not differences
                alignas(64) float lanes[W] = {};
                store_n<DType::f32>(lanes, d, n);
                d = load(lanes);
            }
            return d * d;
        });
        const float factor = 1 / std::sqrt(sum_lanes(squares) * inverse_cols + a.eps);
        with_type(a.out_type, [&](auto t) { norm_write<decltype(t)::value>(a, row, x, mean, factor); });
    }
}

// ---- softmax

inline int64_t softmax_units(const Softmax& a) { return a.rows; }
inline size_t softmax_scratch(const Softmax& a) { return row_scratch(a.cols); }

inline void softmax(const Softmax& a, int64_t begin, int64_t end, void* scratch) {
    auto* x = static_cast<float*>(scratch);
    for (int64_t row = begin; row < end; ++row) {
        load_span(a.in, a.in_type, row * a.in_stride, a.cols, 1, 0, x);
        // A buffer of whole vectors, its end at -inf, needs no tails.
        for (int64_t i = a.cols; i < round_up(a.cols, W); ++i) x[i] = -INFINITY * (a.scale < 0 ? -1.0F : 1.0F);
        F top = set(-INFINITY), sum = zero();
        for (int64_t i = 0; i < a.cols; i += W) {
            const F v = load(x + i) * set(a.scale);
            store(x + i, v);
            top = max(top, v);
        }
        const F most_of_all = set(max_lanes(top));
        for (int64_t i = 0; i < a.cols; i += W) {
            // exponential() bottoms out at 1e-38: beyond the row nothing may be added.
            F v = exponential(load(x + i) - most_of_all);
            if (i + W > a.cols) {
                store(x + i, v);
                for (int64_t j = a.cols; j < i + W; ++j) x[j] = 0;
                v = load(x + i);
            }
            store(x + i, v);
            sum = sum + v;
        }
        const F share = set(1 / sum_lanes(sum));
        for (int64_t i = 0; i < a.cols; i += W) store(x + i, load(x + i) * share);
        store_span(x, a.cols, a.out, a.out_type, row * a.out_stride, 1, 0);
    }
}

// ---- elementwise: pieces of rows of at most kSpan values

constexpr int64_t kSpan = 1024;

inline bool is_flat(const Eltwise& e) {
    return e.a_rows == nullptr && e.a_stride == e.cols && e.out_stride == e.cols &&
           (e.op == Binary::none || (e.b_col == 1 && e.b_rows == 1 && e.b_stride == e.cols) ||
            (e.b_col == 0 && e.b_stride == 0));
}

// Whether bytes go as they are.
inline bool is_copy(const Eltwise& e) {
    const bool same = !is_quantised(e.a_type) || (e.a_scale == e.out_scale && e.a_zero == e.out_zero);
    return e.op == Binary::none && e.act == Act::none && e.a_type == e.out_type && same;
}

inline int64_t eltwise_units(const Eltwise& e) {
    return is_flat(e) ? ceil_div(e.rows * e.cols, kSpan) : e.rows;
}
inline size_t eltwise_scratch(const Eltwise&) { return 2 * row_scratch(kSpan); }

inline void eltwise(const Eltwise& e, int64_t begin, int64_t end, void* scratch) {
    auto* x = static_cast<float*>(scratch);
    float* y = x + row_scratch(kSpan) / 4;
    const bool flat = is_flat(e), rounded = e.out_type != DType::f32, copied = is_copy(e);
    const auto piece = [&](int64_t row, int64_t col, int64_t count) {
        const int64_t from = e.a_rows == nullptr ? row : e.a_rows[row];
        if (copied && from >= 0) {
            std::memcpy(element(e.out, e.out_type, row * e.out_stride + col),
                        element(e.a, e.a_type, from * e.a_stride + col),
                        static_cast<size_t>(count) * size_of(e.a_type));
            return;
        }
        if (from < 0)
            std::memset(x, 0, static_cast<size_t>(count) * 4);
        else
            load_span(e.a, e.a_type, from * e.a_stride + col, count, e.a_scale, e.a_zero, x);
        if (e.op != Binary::none) {
            const int64_t at = row / e.b_rows * e.b_stride + col * e.b_col;
            const float one =
                e.b_col == 0 ? load_one(e.b, e.b_type, at, e.b_scale, e.b_zero) : 0;
            if (e.b_col != 0) load_span(e.b, e.b_type, at, count, e.b_scale, e.b_zero, y);
            each_vector(count, [&](int64_t i, int n) {
                const F a = load_n<DType::f32>(x, i, n);
                const F b = e.b_col != 0 ? load_n<DType::f32>(y, i, n) : set(one);
                const F v = e.op == Binary::add ? a + b : e.op == Binary::sub ? a - b : a * b;
                store_n<DType::f32>(x + i, v, n);
            });
        }
        activate_span(x, count, e.act, rounded);
        store_span(x, count, e.out, e.out_type, row * e.out_stride + col, e.out_scale, e.out_zero);
    };
    if (flat) {
        const int64_t total = e.rows * e.cols;
        for (int64_t unit = begin; unit < end; ++unit)
            piece(0, unit * kSpan, least(kSpan, total - unit * kSpan));
    } else {
        for (int64_t row = begin; row < end; ++row)
            for (int64_t col = 0; col < e.cols; col += kSpan) piece(row, col, least(kSpan, e.cols - col));
    }
}

}  // namespace
}  // namespace paredown::engine
