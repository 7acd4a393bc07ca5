// The epilogue of product kernels, some rows of one panel of columns at a time.
#pragma once
#include "kernels_clamp.hpp"

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
    // From a row's outputs to those of the next panel, in elements: fetched while this one is done.
    int64_t ahead = 0;
    float inverse_scale = 1;
    bool folded = false;  // scale and bias give units of the 8-bit output (kernels_clamp.hpp)
    // Rows [row, row + count) of the output; sums of `kPanel` columns in each.
    void (*rows)(const Finish&, const char* sums, int64_t row, int count) = nullptr;

    // Points at columns [first, first + count); `sums_of_weights` null for float sums.
    void select(int64_t first, int count, const int32_t* sums_of_weights, int32_t zero_point) {
        column = first;
        columns = count;
        for (int i = 0; i < kPanel; i += W) {
            const int n = static_cast<int>(most(0, least(W, count - i)));
            const auto read = [&](const float* from, float otherwise) {
                return from == nullptr ? set(otherwise) : load_first<DType::f32>(from + first + i, n);
            };
            F scales = read(ep->scale, 1), biases = read(ep->bias, 0);
            if (folded) fold(scales, biases, inverse_scale, ep->out_zero);
            store(scale + i, scales);
            store(bias + i, biases);
        }
        for (int i = 0; i < kPanel; ++i)
            offset[i] = i < count && sums_of_weights != nullptr ? -zero_point * sums_of_weights[i] : 0;
    }
};

// What the row functions know of the residual beforehand.
enum class Added { none, half, any };

PAREDOWN_INLINE void fetch(const char* p) { __builtin_prefetch(p); }
PAREDOWN_INLINE void fetch_to_write([[maybe_unused]] const char* p) {
#ifdef __AVX512F__
    asm volatile("prefetchw (%0)" : : "r"(p));
#endif
}

constexpr int64_t kSumsRow = kPanel * 4;  // bytes

// What one vector of columns needs for every row.
template <bool Integer>
struct Column {
    F scale, bias;
    [[maybe_unused]] I offset;
    Column(const Finish& f, int i) : scale(load(f.scale + i)), bias(load(f.bias + i)), offset(load(f.offset + i)) {}
};
template <bool Integer>
PAREDOWN_INLINE F scaled(const Column<Integer>& c, const char* sums) {
    if constexpr (Integer)
        return fma(to_float(add_int(load(reinterpret_cast<const int32_t*>(sums)), c.offset)), c.scale, c.bias);
    else
        return fma(load(reinterpret_cast<const float*>(sums)), c.scale, c.bias);
}

// One vector of a row: columns [i, i + n) of the panel.
template <Act A, DType Out, bool Integer, Added R>
PAREDOWN_INLINE F finished(const Finish& f, const Column<Integer>& column, const char* sums, int64_t row, int i,
                           int n) {
    const Epilogue& ep = *f.ep;
    constexpr bool fast = Out != DType::f32;
    F v = scaled(column, sums + i * 4);
    if constexpr (R == Added::none) {
        v = activate<A, fast>(v);
    } else {
        const int64_t at = row * ep.residual_stride + f.column + i;
        const F r = R == Added::half ? load_n<DType::bf16>(ep.residual, at, n)
                                     : load_value(ep.residual, ep.residual_type, at, n, ep.residual_scale,
                                                  ep.residual_zero);
        v = ep.residual_after ? activate<A, fast>(v) + r : activate<A, fast>(v + r);
    }
    if constexpr (Out == DType::u8 || Out == DType::s8) v = quantise(v, f.inverse_scale, ep.out_zero);
    return v;
}

// Whether `rows` for these writes 8-bit outputs straight from the multiply-add.
constexpr bool folds(Act a, DType out, Added r) {
    return (out == DType::u8 || out == DType::s8) && is_clamp(a) && r == Added::none;
}

template <Act A, DType Out, bool Integer, Added R>
void finish_rows(const Finish& f, const char* sums, int64_t row, int count) {
    constexpr int64_t size = static_cast<int64_t>(size_of(Out));
    const int64_t step = f.out_stride * size;
    char* out = f.out + (row * f.out_stride + f.column) * size;
    if (f.columns == kPanel) {
        const Column<Integer> low(f, 0), high(f, W);
        const Clamp<Out> clamp(A, f.inverse_scale, f.ep->out_zero);
        for (const int64_t end = row + count; row < end; ++row, sums += kSumsRow, out += step) {
            fetch_to_write(out + f.ahead * size);
            if constexpr (folds(A, Out, R)) {
                clamp.put(out, scaled(low, sums));
                clamp.put(out + W, scaled(high, sums + W * 4));
                continue;
            }
            if constexpr (R != Added::none) {
                const int64_t wide = static_cast<int64_t>(size_of(f.ep->residual_type));
                fetch(static_cast<const char*>(f.ep->residual) +
                      (row * f.ep->residual_stride + f.column + f.ahead) * wide);
            }
            store_pair<Out>(out, finished<A, Out, Integer, R>(f, low, sums, row, 0, W),
                            finished<A, Out, Integer, R>(f, high, sums, row, W, W));
        }
        return;
    }
    for (int i = 0; i < f.columns; i += W) {
        const int n = static_cast<int>(least(f.columns - i, W));
        const Column<Integer> column(f, i);
        const Clamp<Out> clamp(A, f.inverse_scale, f.ep->out_zero);
        for (int r = 0; r < count; ++r) {
            const char* from = sums + r * kSumsRow;
            F v;
            if constexpr (folds(A, Out, R))
                v = clamp.bounded(scaled(column, from + i * 4));
            else
                v = finished<A, Out, Integer, R>(f, column, from, row + r, i, n);
            store_n<Out>(out + r * step + i * size, v, n);
        }
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
            constexpr Act A = decltype(act)::value;
            constexpr DType T = decltype(type)::value;
            f.folded = ep.residual == nullptr && folds(A, T, Added::none);
            f.rows = ep.residual == nullptr            ? finish_rows<A, T, Integer, Added::none>
                     : ep.residual_type == DType::bf16 ? finish_rows<A, T, Integer, Added::half>
                                                       : finish_rows<A, T, Integer, Added::any>;
        });
    });
    return f;
}

}  // namespace
}  // namespace paredown::engine
