// Products with sparse weights: blocks of zeros are neither held nor multiplied.
//
// Weights are cut into strips of 16 outputs and strips into blocks along k. `lanes`: four bytes of k (one
// float, two bf16, four bytes), so that one broadcast of an activation meets one vector of weights, as in
// the dense kernels, and rows are read where they lie. `tiles`: 64 bytes of k, an AMX tile
// (kernels_sparse_tiles.hpp). Block-sparse products with VNNI: Shen et al. 2023 (arXiv:2306.16601), who
// gather rows of a transposed activation; ours stays NHWC and skips steps of k instead.
//
// A zero weight is no product: a NaN or infinity that meets nothing but zeros is not seen.
#pragma once
#include "kernels_product.hpp"

namespace paredown::engine {
namespace {

constexpr int kStripOutputs = 16;
constexpr int64_t kCellBytes = 64;          // four bytes of k for each output of a strip
constexpr int kStrips = kPanel / kStripOutputs;    // of a panel of the epilogue

// What packed weights begin with; all places in bytes from there.
struct alignas(64) SparseHead {
    int64_t form, strips, blocks, starts, offsets, data, sums, total;

    SparseHead(SparseForm f, int64_t outputs, int64_t count, int64_t block_bytes)
        : form(static_cast<int64_t>(f)), strips(ceil_div(outputs, kStripOutputs)), blocks(count), starts(64),
          offsets(round_up(starts + (strips + 1) * 4, 64)), data(round_up(offsets + count * 4, 64)),
          sums(data + count * block_bytes), total(sums + strips * kStripOutputs * 4) {}
};
static_assert(sizeof(SparseHead) == 64);

inline SparseHead head_of(const void* w) {
    SparseHead head(SparseForm::lanes, 0, 0, 0);
    std::memcpy(static_cast<void*>(&head), w, sizeof head);
    return head;
}

constexpr int64_t cells_of(SparseForm f) { return f == SparseForm::tiles ? 16 : 1; }

// Calls block(strip, byte of k, cells) for each block with a weight other than zero, in order.
template <Sum S, typename Block>
void each_block(const Weights& w, SparseForm form, const void* from, Block&& block) {
    constexpr int64_t size = element_size(S);
    const int64_t cells = cells_of(form), step = cells * 4 / size;
    alignas(64) char buffer[16 * kCellBytes];
    for (int64_t strip = 0; strip * kStripOutputs < w.out; ++strip)
        for (int64_t k = 0; k < w.in; k += step) {
            bool any = false;
            std::memset(buffer, 0, sizeof buffer);
            for (int64_t lane = 0; lane < least(kStripOutputs, w.out - strip * kStripOutputs); ++lane)
                for (int64_t i = 0; i < least(step, w.in - k); ++i) {
                    const int64_t at = (strip * kStripOutputs + lane) * w.in + k + i, byte = i * size;
                    char* cell = buffer + byte / 4 * kCellBytes + lane * 4 + byte % 4;
                    if constexpr (is_integer(S)) {
                        const int8_t value = static_cast<const int8_t*>(from)[at];
                        const int16_t wide = value;
                        any = any || value != 0;
                        std::memcpy(cell, S == Sum::s16 ? static_cast<const void*>(&wide) : &value, size);
                    } else {
                        const float value = static_cast<const float*>(from)[at];
                        const uint16_t rounded = to_bf16(value);
                        const float held = S == Sum::f32 ? value : from_bf16(rounded);
                        any = any || held != 0;
                        std::memcpy(cell, S == Sum::bf16 ? static_cast<const void*>(&rounded) : &held, size);
                    }
                }
            if (any) block(strip, k * size, buffer);
        }
}

template <Sum S>
SparseHead sparse_head(const Weights& w, SparseForm form, const void* from) {
    int64_t count = 0;
    each_block<S>(w, form, from, [&](int64_t, int64_t, const char*) { ++count; });
    return SparseHead(form, w.out, count, cells_of(form) * kCellBytes);
}

template <Sum S>
void pack_blocks(const Weights& w, SparseForm form, const void* from, void* to) {
    const SparseHead head = sparse_head<S>(w, form, from);
    const int64_t bytes = cells_of(form) * kCellBytes;
    char* base = static_cast<char*>(to);
    std::memset(base, 0, static_cast<size_t>(head.total));
    std::memcpy(base, &head, sizeof head);
    auto* starts = reinterpret_cast<int32_t*>(base + head.starts);
    auto* offsets = reinterpret_cast<int32_t*>(base + head.offsets);
    int64_t at = 0;
    each_block<S>(w, form, from, [&](int64_t strip, int64_t k_byte, const char* cells) {
        ++starts[strip + 1];
        offsets[at] = static_cast<int32_t>(k_byte);
        std::memcpy(base + head.data + at++ * bytes, cells, static_cast<size_t>(bytes));
    });
    for (int64_t s = 0; s < head.strips; ++s) starts[s + 1] += starts[s];
    if constexpr (is_integer(S)) {
        auto* sums = reinterpret_cast<int32_t*>(base + head.sums);
        for (int64_t o = 0; o < w.out; ++o)
            for (int64_t i = 0; i < w.in; ++i) sums[o] += static_cast<const int8_t*>(from)[o * w.in + i];
    }
}

// ---- walking over chunks of rows, panels of outputs and blocks of rows

// Rows of a chunk stay in L1 while all weights pass by out of L2.
constexpr int64_t kSparseChunkBytes = 32 << 10;

struct SparseRows {
    int64_t k_bytes, row_bytes;  // of a row; between rows as the kernel reads them
    int64_t chunk, chunks, blocks, panels;
    bool direct;
};

template <Sum S>
SparseRows sparse_rows_of(const Gemm& g, int64_t block_rows) {
    const SparseHead head = head_of(g.w);
    const int64_t size = element_size(S);
    SparseRows r;
    r.k_bytes = round_up(g.k * size, cells_of(static_cast<SparseForm>(head.form)) * 4);
    r.direct = in_place<S>(g.a_type) && r.k_bytes == g.k * size;
    r.row_bytes = r.direct ? g.lda * size : r.k_bytes;
    r.chunk = least(round_up(most(kSparseChunkBytes / r.k_bytes, 1), block_rows), round_up(g.m, block_rows));
    r.chunks = ceil_div(g.m, r.chunk);
    r.chunk = least(round_up(ceil_div(g.m, r.chunks), block_rows), g.m);
    r.chunks = ceil_div(g.m, r.chunk);
    r.blocks = ceil_div(r.chunk, block_rows);
    r.panels = ceil_div(g.n, kPanel);
    return r;
}

// One panel's strips: their blocks' offsets and weights.
struct Strips {
    const int32_t* offsets[kStrips];
    const char* weights[kStrips];
    int64_t counts[kStrips];

    Strips(const void* w, const SparseHead& head, int64_t panel, int64_t block_bytes) {
        const char* base = static_cast<const char*>(w);
        const auto* starts = reinterpret_cast<const int32_t*>(base + head.starts);
        for (int i = 0; i < kStrips; ++i) {
            const int64_t strip = panel * kStrips + i;
            const int64_t first = strip < head.strips ? starts[strip] : 0;
            counts[i] = strip < head.strips ? starts[strip + 1] - first : 0;
            offsets[i] = reinterpret_cast<const int32_t*>(base + head.offsets) + first;
            weights[i] = base + head.data + first * block_bytes;
        }
    }
};

// Calls each(rows' address, chunk's first row, rows there, block, strips, finish) for the units of a range.
template <Sum S, typename Each>
void sparse_walk(const Gemm& g, const SparseRows& r, int64_t begin, int64_t end, char* scratch, Finish (&finish)[2],
                 Each&& each) {
    const SparseHead head = head_of(g.w);
    const int64_t block_bytes = cells_of(static_cast<SparseForm>(head.form)) * kCellBytes;
    const int64_t size = static_cast<int64_t>(size_of(g.a_type));
    const int32_t zero_point = converted_zero<S>(g.a_type, g.a_zero);
    finish[0] = finish[1] = make_finish<is_integer(S)>(g.ep, g.c, g.ldc);
    const char* a = nullptr;
    int turn = 0;  // two in turn: the last block of a panel may be finished during the next panel
    int64_t chunk_now = -1, panel_now = -1;
    Strips strips(g.w, head, 0, block_bytes);
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t chunk = unit / (r.panels * r.blocks), panel = unit / r.blocks % r.panels;
        const int64_t first = chunk * r.chunk, rows = least(r.chunk, g.m - first);
        if (chunk != chunk_now) {
            a = static_cast<const char*>(g.a) + first * g.lda * size;
            if (!r.direct) {
                const int64_t dense = g.k * element_size(S);
                for (int64_t i = 0; i < rows; ++i) {
                    char* row = scratch + i * r.k_bytes;
                    convert<S>(a + i * g.lda * size, g.a_type, row, g.k);
                    std::memset(row + dense, 0, static_cast<size_t>(r.k_bytes - dense));
                }
                a = scratch;
            }
        }
        if (chunk != chunk_now || panel != panel_now) {
            const auto* sums = reinterpret_cast<const int32_t*>(static_cast<const char*>(g.w) + head.sums);
            turn ^= 1;
            finish[turn].select(panel * kPanel, static_cast<int>(least(kPanel, g.n - panel * kPanel)),
                                is_integer(S) ? sums + panel * kPanel : nullptr, zero_point);
            finish[turn].ahead = kPanel;
            strips = Strips(g.w, head, panel, block_bytes);
            chunk_now = chunk;
            panel_now = panel;
        }
        each(a, first, rows, unit % r.blocks, strips, finish[turn]);
    }
}

// ---- lanes

// Sums of `Rows` rows against the blocks of one strip.
template <Sum S, int Rows>
void sum_lanes_of(const char* a, int64_t stride, const int32_t* offsets, int64_t count, const char* w, char* sums) {
    constexpr int kVectors = kStripOutputs / W;
    using V = typename Dot<S>::V;
    V acc[Rows][kVectors];
    for (auto& row : acc)
        for (V& v : row) v = Dot<S>::none();
    for (int64_t i = 0; i < count; ++i, w += kCellBytes) {
        const char* at = a + offsets[i];
        F b[kVectors];
        std::memcpy(b, w, sizeof b);
        // Three rows per base register, at 0, 1 and 2 strides from it.
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
            if (r > 0 && r % 3 == 0) {
                at += 3 * stride;
                asm("" : "+r"(at));
            }
            const F x = broadcast(at + r % 3 * stride);
            for (int v = 0; v < kVectors; ++v) acc[r][v] = Dot<S>::add(acc[r][v], x, b[v]);
        }
    }
    for (int r = 0; r < Rows; ++r) std::memcpy(sums + r * kSumsRow, acc[r], sizeof acc[r]);
}

using SumLanes = void (*)(const char*, int64_t, const int32_t*, int64_t, const char*, char*);

// The kernel of the most rows that `rows` hold, and their number.
template <Sum S>
SumLanes sum_lanes_for(int64_t rows, int64_t* taken) {
    *taken = rows >= kRows ? kRows : rows >= 4 ? 4 : 1;
    return *taken == kRows ? sum_lanes_of<S, kRows> : *taken == 4 ? sum_lanes_of<S, 4> : sum_lanes_of<S, 1>;
}

template <Sum S>
void sparse_lanes(const Gemm& g, int64_t begin, int64_t end, void* scratch) {
    const SparseRows r = sparse_rows_of<S>(g, kRows);
    alignas(64) char sums[kRows * kSumsRow];
    Finish finish[2];
    sparse_walk<S>(g, r, begin, end, static_cast<char*>(scratch), finish,
                   [&](const char* a, int64_t first, int64_t rows, int64_t block, const Strips& s, const Finish& f) {
                       const int64_t start = block * kRows, stop = least(rows, start + kRows);
                       for (int64_t row = start; row < stop;) {
                           int64_t taken;
                           const SumLanes sum = sum_lanes_for<S>(least(rows, kRows), &taken);
                           // The last rows are summed with some before them, for a second time.
                           const int64_t from = least(row, rows - taken), fresh = least(stop, from + taken);
                           for (int i = 0; i < kStrips; ++i)
                               sum(a + from * r.row_bytes, r.row_bytes, s.offsets[i], s.counts[i], s.weights[i],
                                   sums + i * kCellBytes);
                           f.rows(f, sums + (row - from) * kSumsRow, first + row, static_cast<int>(fresh - row));
                           row = fresh;
                       }
                   });
}

// ---- table entries

// Sparse products with weights of one type; those of others stay with the table that this is added to.
template <Sum S>
struct SparseLanes {
    static inline Kernels before;
    static bool mine(const Gemm& g) { return as_conv(g).weight_type == weights_of(S); }

    static size_t size(const Weights& w, SparseForm form, const void* from) {
        if (w.type != weights_of(S)) return before.packed_sparse_size(w, form, from);
        return static_cast<size_t>(sparse_head<S>(w, SparseForm::lanes, from).total);
    }
    static void pack(const Weights& w, SparseForm form, const void* from, void* to) {
        if (w.type != weights_of(S)) return before.pack_sparse(w, form, from, to);
        pack_blocks<S>(w, SparseForm::lanes, from, to);
    }
    static int64_t units(const Gemm& g) {
        if (!mine(g)) return before.sparse.units(g);
        const SparseRows r = sparse_rows_of<S>(g, kRows);
        return r.chunks * r.panels * r.blocks;
    }
    static size_t scratch(const Gemm& g) {
        if (!mine(g)) return before.sparse.scratch(g);
        const SparseRows r = sparse_rows_of<S>(g, kRows);
        return r.direct ? 0 : static_cast<size_t>((r.chunk + 1) * r.k_bytes);
    }
    static void run(const Gemm& g, int64_t begin, int64_t end, void* scratch) {
        return mine(g) ? sparse_lanes<S>(g, begin, end, scratch) : before.sparse.run(g, begin, end, scratch);
    }
    static int64_t grain(const Gemm& g) {
        if (!mine(g)) return before.sparse.grain == nullptr ? 1 : before.sparse.grain(g);
        const SparseRows r = sparse_rows_of<S>(g, kRows);
        return r.direct ? 1 : r.panels * r.blocks;
    }
    static void add(Kernels& t) {
        before = t;
        t.packed_sparse_size = size;
        t.pack_sparse = pack;
        t.sparse = {units, scratch, run, grain};
    }
};

template <Sum... S>
void add_sparse(Kernels& t) { (SparseLanes<S>::add(t), ...); }

}  // namespace
}  // namespace paredown::engine
