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

// Calls `pair(out, row, sums, low, high)` for each row of a whole panel, `part(out, row, sums, column, i, n)`
// for columns [i, i + n) of each row of a panel with fewer.
template <DType Out, bool Integer, typename Pair, typename Part>
PAREDOWN_INLINE void each_row(const Finish& f, const char* sums, int64_t row, int count, Pair&& pair, Part&& part) {
    constexpr int64_t size = static_cast<int64_t>(size_of(Out));
    const int64_t step = f.out_stride * size;
    char* out = f.out + (row * f.out_stride + f.column) * size;
    if (f.columns == kPanel) {
        const Column<Integer> low(f, 0), high(f, W);
        for (const int64_t end = row + count; row < end; ++row, sums += kSumsRow, out += step) {
            fetch_to_write(out + f.ahead * size);
            pair(out, row, sums, low, high);
        }
        return;
    }
    for (int i = 0; i < f.columns; i += W) {
        const int n = static_cast<int>(least(f.columns - i, W));
        const Column<Integer> column(f, i);
        for (int r = 0; r < count; ++r)
            part(out + r * step + i * size, row + r, sums + r * kSumsRow + i * 4, column, i, n);
    }
}

template <Act A, DType Out, bool Integer>
void finish_rows(const Finish& f, const char* sums, int64_t row, int count) {
    using C = const Column<Integer>&;
    if constexpr (folds(A, Out)) {
        const Clamp<Out> clamp(A, f.inverse_scale, f.ep->out_zero);
        each_row<Out, Integer>(
            f, sums, row, count,
            [&](char* out, int64_t, const char* from, C low, C high) {
                clamp.put(out, scaled(low, from));
                clamp.put(out + W, scaled(high, from + W * 4));
            },
            [&](char* out, int64_t, const char* from, C column, int, int n) {
                store_n<Out>(out, clamp.bounded(scaled(column, from)), n);
            });
    } else {
        const auto value = [&](C column, const char* from) {
            const F v = activate<A, Out != DType::f32>(scaled(column, from));
            return in_units<Out>(v, f.inverse_scale, f.ep->out_zero);
        };
        each_row<Out, Integer>(
            f, sums, row, count,
            [&](char* out, int64_t, const char* from, C low, C high) {
                store_pair<Out>(out, value(low, from), value(high, from + W * 4));
            },
            [&](char* out, int64_t, const char* from, C column, int, int n) {
                store_n<Out>(out, value(column, from), n);
            });
    }
}

// The same with a residual. Its activation is looked at here, for every vector: a template of each would be
// half of all code. `Half`: the residual is bf16, as it mostly is where outputs are.
template <DType Out, bool Integer, bool Half>
void add_rows(const Finish& f, const char* sums, int64_t row, int count) {
    using C = const Column<Integer>&;
    const Epilogue& ep = *f.ep;
    const Late activate_late(ep.act);
    const auto value = [&](C column, const char* from, int64_t at_row, int i, int n) {
        const int64_t at = at_row * ep.residual_stride + f.column + i;
        const F r = Half ? load_n<DType::bf16>(ep.residual, at, n)
                         : load_value(ep.residual, ep.residual_type, at, n, ep.residual_scale, ep.residual_zero);
        const F v = scaled(column, from);
        return in_units<Out>(ep.residual_after ? activate_late(v) + r : activate_late(v + r), f.inverse_scale,
                             ep.out_zero);
    };
    const int64_t wide = static_cast<int64_t>(size_of(ep.residual_type));
    each_row<Out, Integer>(
        f, sums, row, count,
        [&](char* out, int64_t at, const char* from, C low, C high) {
            fetch(static_cast<const char*>(ep.residual) + (at * ep.residual_stride + f.column + f.ahead) * wide);
            const F first = value(low, from, at, 0, W);
            store_pair<Out>(out, first, value(high, from + W * 4, at, W, W));
        },
        [&](char* out, int64_t at, const char* from, C column, int i, int n) {
            store_n<Out>(out, value(column, from, at, i, n), n);
        });
}

template <bool Integer>
Finish make_finish(const Epilogue& ep, void* out, int64_t out_stride) {
    Finish f;
    f.ep = &ep;
    f.out = static_cast<char*>(out);
    f.out_stride = out_stride;
    f.inverse_scale = 1 / ep.out_scale;
    with_type(ep.out_type, [&](auto type) {
        constexpr DType T = decltype(type)::value;
        if (ep.residual != nullptr) {
            f.rows = add_rows<T, Integer, false>;
            if (T == DType::bf16 && ep.residual_type == DType::bf16) f.rows = add_rows<DType::bf16, Integer, true>;
            return;
        }
        with_activation(ep.act, [&](auto act) {
            constexpr Act A = decltype(act)::value;
            f.folded = folds(A, T);
            f.rows = finish_rows<A, T, Integer>;
        });
    });
    return f;
}

}  // namespace
}  // namespace paredown::engine
