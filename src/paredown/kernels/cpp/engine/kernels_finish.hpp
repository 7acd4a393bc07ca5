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
    // From a row's outputs to those of the next panel, in elements: fetched while this one is done.
    int64_t ahead = 0;
    float inverse_scale = 1;
    void (*row)(const Finish&, const void* sums, int64_t row) = nullptr;

    // Points at columns [first, first + count); `sums_of_weights` null for float sums.
    void select(int64_t first, int count, const int32_t* sums_of_weights, int32_t zero_point) {
        column = first;
        columns = count;
        for (int i = 0; i < kPanel; i += W) {
            const int n = static_cast<int>(most(0, least(W, count - i)));
            const auto read = [&](const float* from, float otherwise) {
                return from == nullptr ? set(otherwise) : load_first<DType::f32>(from + first + i, n);
            };
            store(scale + i, read(ep->scale, 1));
            store(bias + i, read(ep->bias, 0));
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

// One vector of a row: columns [i, i + n) of the panel.
template <Act A, DType Out, bool Integer, Added R>
PAREDOWN_INLINE F finished(const Finish& f, const void* sums, int64_t row, int i, int n) {
    const Epilogue& ep = *f.ep;
    constexpr bool fast = Out != DType::f32;
    F v;
    if constexpr (Integer)
        v = to_float(add_int(load(static_cast<const int32_t*>(sums) + i), load(f.offset + i)));
    else
        v = load(static_cast<const float*>(sums) + i);
    v = fma(v, load(f.scale + i), load(f.bias + i));
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

template <Act A, DType Out, bool Integer, Added R>
void finish_row(const Finish& f, const void* sums, int64_t row) {
    constexpr int64_t size = static_cast<int64_t>(size_of(Out));
    char* out = f.out + (row * f.out_stride + f.column) * size;
    if (f.columns == kPanel) {
        fetch_to_write(out + f.ahead * size);
        if constexpr (R != Added::none) {
            const int64_t wide = static_cast<int64_t>(size_of(f.ep->residual_type));
            fetch(static_cast<const char*>(f.ep->residual) +
                  (row * f.ep->residual_stride + f.column + f.ahead) * wide);
        }
        store_pair<Out>(out, finished<A, Out, Integer, R>(f, sums, row, 0, W),
                        finished<A, Out, Integer, R>(f, sums, row, W, W));
        return;
    }
    for (int i = 0; i < f.columns; i += W) {
        const int n = static_cast<int>(least(f.columns - i, W));
        store_n<Out>(out + i * size, finished<A, Out, Integer, R>(f, sums, row, i, n), n);
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
            f.row = ep.residual == nullptr                ? finish_row<A, T, Integer, Added::none>
                    : ep.residual_type == DType::bf16 ? finish_row<A, T, Integer, Added::half>
                                                      : finish_row<A, T, Integer, Added::any>;
        });
    });
    return f;
}

}  // namespace
}  // namespace paredown::engine
