// The readable reference of sparse products: rows of weights as lists of (input, value), sums in double.
#include "kernels_common.hpp"
#include "kernels_scalar.hpp"

namespace paredown::engine {
namespace {

// Packed: starts of each output's list (out + 1, int64), inputs (int64), values (double).
double value_of(const Weights& w, const void* from, int64_t at) {
    if (w.type == DType::s8) return static_cast<const int8_t*>(from)[at];
    const float value = static_cast<const float*>(from)[at];
    return w.type == DType::bf16 ? from_bf16(to_bf16(value)) : value;
}

int64_t filled(const Weights& w, const void* from) {
    int64_t count = 0;
    for (int64_t i = 0; i < w.out * w.in; ++i) count += value_of(w, from, i) != 0 ? 1 : 0;
    return count;
}

size_t packed_sparse_size(const Weights& w, SparseForm, const void* from) {
    return static_cast<size_t>(w.out + 1 + 2 * filled(w, from)) * 8;
}

void pack_sparse(const Weights& w, SparseForm, const void* from, void* to) {
    auto* starts = static_cast<int64_t*>(to);
    int64_t* inputs = starts + w.out + 1;
    auto* values = reinterpret_cast<double*>(inputs + filled(w, from));
    starts[0] = 0;
    for (int64_t o = 0, at = 0; o < w.out; ++o) {
        for (int64_t i = 0; i < w.in; ++i)
            if (const double value = value_of(w, from, o * w.in + i); value != 0) {
                inputs[at] = i;
                values[at++] = value;
            }
        starts[o + 1] = at;
    }
}

int64_t sparse_units(const Gemm& g) { return g.m; }
size_t sparse_scratch(const Gemm&) { return 0; }

void sparse(const Gemm& g, int64_t begin, int64_t end, void*) {
    const auto* starts = static_cast<const int64_t*>(g.w);
    const int64_t* inputs = starts + g.n + 1;
    const auto* values = reinterpret_cast<const double*>(inputs + starts[g.n]);
    for (int64_t row = begin; row < end; ++row)
        for (int64_t o = 0; o < g.n; ++o) {
            double acc = 0;
            for (int64_t i = starts[o]; i < starts[o + 1]; ++i)
                acc += values[i] * load_one(g.a, g.a_type, row * g.lda + inputs[i], 1, g.a_zero);
            finish_one(g.ep, acc, row, o, g.c, g.ldc);
        }
}

}  // namespace

void add_scalar_sparse(Kernels& t) {
    t.packed_sparse_size = packed_sparse_size;
    t.pack_sparse = pack_sparse;
    t.sparse = {sparse_units, sparse_scratch, sparse};
}

}  // namespace paredown::engine
