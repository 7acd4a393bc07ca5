// Sparse float products of single weights: Elsen et al. 2019, "Fast Sparse ConvNets" (arXiv:1911.09723).
//
// Lanes run over pixels, so that a lone weight meets a whole vector of activations. A strip of pixels is
// turned to [input][pixel] once, every output then walks through its own list of inputs with its sums in
// registers, and 16 (AVX2: 8) outputs at a time are turned back for the epilogue. The paper keeps
// activations in CHW throughout; turning is the price of NHWC here. `single`: one output to a list;
// `quads`: four outputs share a list and each vector of activations that it reads (blocks of 4 x 1).
#pragma once
#include "kernels_attention.hpp"
#include "kernels_sparse.hpp"

namespace paredown::engine {
namespace {

constexpr int kPixelVectors = 4;
constexpr int kStripPixels = kPixelVectors * W;
constexpr int64_t kPixelBytes = kStripPixels * 4;

constexpr int outputs_of(SparseForm f) { return f == SparseForm::quads ? 4 : 1; }

// Packed as SparseHead has it: starts of lists, offsets into the turned strip, then `outputs` floats each.
template <typename Item>
void each_item(const Weights& w, int64_t outputs, const float* from, Item&& item) {
    for (int64_t list = 0; list * outputs < w.out; ++list)
        for (int64_t k = 0; k < w.in; ++k) {
            float values[4] = {};
            bool any = false;
            for (int64_t o = 0; o < least(outputs, w.out - list * outputs); ++o) {
                values[o] = from[(list * outputs + o) * w.in + k];
                any = any || values[o] != 0;
            }
            if (any) item(list, k, values);
        }
}

inline SparseHead single_head(const Weights& w, SparseForm form, const void* from) {
    const int64_t outputs = outputs_of(form);
    int64_t count = 0;
    each_item(w, outputs, static_cast<const float*>(from), [&](int64_t, int64_t, const float*) { ++count; });
    // As many lists as a strip has outputs, so that panels end with empty ones.
    SparseHead head(form, round_up(w.out, kPanel) / outputs * kStripOutputs, count, outputs * 4);
    head.total = head.sums;
    return head;
}

inline void pack_single(const Weights& w, SparseForm form, const void* from, void* to) {
    const SparseHead head = single_head(w, form, from);
    const int64_t outputs = outputs_of(form);
    char* base = static_cast<char*>(to);
    std::memset(base, 0, static_cast<size_t>(head.total));
    std::memcpy(base, &head, sizeof head);
    auto* starts = reinterpret_cast<int32_t*>(base + head.starts);
    auto* offsets = reinterpret_cast<int32_t*>(base + head.offsets);
    int64_t at = 0;
    each_item(w, outputs, static_cast<const float*>(from), [&](int64_t list, int64_t k, const float* values) {
        ++starts[list + 1];
        offsets[at] = static_cast<int32_t>(k * kPixelBytes);
        std::memcpy(base + head.data + at++ * outputs * 4, values, static_cast<size_t>(outputs) * 4);
    });
    for (int64_t s = 0; s < head.strips; ++s) starts[s + 1] += starts[s];
}

// One list against a strip: sums [output][pixel]. Lone outputs sum in two halves, or each sum would wait
// for the one before it.
template <int Outputs>
void sum_list(const char* strip, const int32_t* offsets, int64_t count, const float* values, float* sums) {
    constexpr int kHalves = Outputs == 1 ? 2 : 1;
    F acc[kHalves][Outputs][kPixelVectors];
    for (auto& half : acc)
        for (auto& row : half)
            for (F& v : row) v = zero();
    const auto item = [&](int64_t i, auto& into) {
        const auto* x = reinterpret_cast<const float*>(strip + offsets[i]);
        F weight[Outputs];
        for (int o = 0; o < Outputs; ++o) weight[o] = set(values[i * Outputs + o]);
        for (int v = 0; v < kPixelVectors; ++v) {
            const F here = load(x + v * W);
            for (int o = 0; o < Outputs; ++o) into[o][v] = fma(here, weight[o], into[o][v]);
        }
    };
    int64_t i = 0;
    if constexpr (kHalves == 2)
        for (; i + 2 <= count; i += 2) {
            item(i, acc[0]);
            item(i + 1, acc[1]);
        }
    for (; i < count; ++i) item(i, acc[0]);
    for (int o = 0; o < Outputs; ++o)
        for (int v = 0; v < kPixelVectors; ++v) {
            F total = acc[0][o][v];
            if constexpr (kHalves == 2) total = total + acc[1][o][v];
            store(sums + o * kStripPixels + v * W, total);
        }
}

// Rows of four-byte cells to columns; whole blocks of W by W at once.
inline void turn(const char* from, int64_t stride, int64_t rows, int64_t cells, char* to, int64_t to_stride) {
    for (int64_t row = 0; row < rows; row += W)
        turn_cells(from + row * stride, stride, least(W, rows - row), cells, to + row * 4, to_stride);
}

template <int Outputs>
void sparse_single(const Gemm& g, int64_t begin, int64_t end, void* scratch) {
    const SparseHead head = head_of(g.w);
    const char* base = static_cast<const char*>(g.w);
    const auto* starts = reinterpret_cast<const int32_t*>(base + head.starts);
    const auto* offsets = reinterpret_cast<const int32_t*>(base + head.offsets);
    const auto* values = reinterpret_cast<const float*>(base + head.data);
    const int64_t panels = ceil_div(g.n, kPanel);
    char* strip = static_cast<char*>(scratch);
    alignas(64) float turned[kPanel * kStripPixels];
    alignas(64) char sums[kStripPixels * kSumsRow];
    Finish finish = make_finish<false>(g.ep, g.c, g.ldc);
    int64_t strip_now = -1;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t first = unit / panels * kStripPixels, panel = unit % panels;
        const int64_t pixels = least(kStripPixels, g.m - first);
        if (unit / panels != strip_now) {
            strip_now = unit / panels;
            if (pixels < kStripPixels) std::memset(strip, 0, static_cast<size_t>(g.k * kPixelBytes));
            turn(static_cast<const char*>(g.a) + first * g.lda * 4, g.lda * 4, pixels, g.k, strip, kPixelBytes);
        }
        const int columns = static_cast<int>(least(kPanel, g.n - panel * kPanel));
        for (int64_t o = 0; o < kPanel; o += Outputs) {
            const int64_t list = (panel * kPanel + o) / Outputs, at = starts[list];
            sum_list<Outputs>(strip, offsets + at, starts[list + 1] - at, values + at * Outputs,
                              turned + o * kStripPixels);
        }
        turn(reinterpret_cast<const char*>(turned), kPixelBytes, kPanel, kStripPixels, sums, kSumsRow);
        finish.select(panel * kPanel, columns, nullptr, 0);
        finish.rows(finish, sums, first, static_cast<int>(pixels));
    }
}

// Float weights in the form of lists; those in another stay with the table that this is added to.
struct SparseSingle {
    static inline Kernels before;
    static bool lists(SparseForm f) { return f == SparseForm::single || f == SparseForm::quads; }
    static bool mine(const Gemm& g) {
        return g.a_type == DType::f32 && lists(static_cast<SparseForm>(head_of(g.w).form));
    }
    static size_t size(const Weights& w, SparseForm form, const void* from) {
        if (w.type != DType::f32 || !lists(form)) return before.packed_sparse_size(w, form, from);
        return static_cast<size_t>(single_head(w, form, from).total);
    }
    static void pack(const Weights& w, SparseForm form, const void* from, void* to) {
        if (w.type != DType::f32 || !lists(form)) return before.pack_sparse(w, form, from, to);
        pack_single(w, form, from, to);
    }
    static int64_t panels(const Gemm& g) { return ceil_div(g.n, kPanel); }
    static int64_t units(const Gemm& g) {
        return mine(g) ? ceil_div(g.m, kStripPixels) * panels(g) : before.sparse.units(g);
    }
    static size_t scratch(const Gemm& g) {
        return mine(g) ? static_cast<size_t>(g.k * kPixelBytes) : before.sparse.scratch(g);
    }
    static void run(const Gemm& g, int64_t begin, int64_t end, void* scratch) {
        if (!mine(g)) return before.sparse.run(g, begin, end, scratch);
        const bool quads = head_of(g.w).form == static_cast<int64_t>(SparseForm::quads);
        (quads ? sparse_single<4> : sparse_single<1>)(g, begin, end, scratch);
    }
    static int64_t grain(const Gemm& g) { return mine(g) ? panels(g) : before.sparse.grain(g); }
    static void add(Kernels& t) {
        before = t;
        t.packed_sparse_size = size;
        t.pack_sparse = pack;
        t.sparse = {units, scratch, run, grain};
    }
};

}  // namespace
}  // namespace paredown::engine
