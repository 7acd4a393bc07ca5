// Sparse products on AMX: only those tiles of weights that hold a number. 32 rows against one strip of
// 16 outputs at a time, the two strips of a panel one after the other, each with blocks of its own.
#pragma once
#include "kernels_sparse.hpp"
#include "kernels_tiles.hpp"

namespace paredown::engine {
namespace {

// One strip: sums in tiles LOW and HIGH, weights through tile B. The builtins want literal numbers.
#define PAREDOWN_SPARSE_STRIP(I, LOW, HIGH, B)                                      \
    do {                                                                            \
        const char* w = s.weights[I];                                               \
        _tile_zero(LOW);                                                            \
        if constexpr (TwoRows) _tile_zero(HIGH);                                    \
        for (int64_t i = 0; i < s.counts[I]; ++i, w += 16 * kCellBytes) {           \
            const char* at = a + s.offsets[I][i];                                   \
            _tile_loadd(B, w, kCellBytes);                                          \
            _tile_loadd(4, at, stride);                                             \
            PAREDOWN_TILE_PRODUCT(LOW, 4, B);                                       \
            if constexpr (TwoRows) {                                                \
                _tile_loadd(5, at + 16 * stride, stride);                           \
                PAREDOWN_TILE_PRODUCT(HIGH, 5, B);                                  \
            }                                                                       \
            before.step(per_step);                                                  \
        }                                                                           \
    } while (false)

template <Kind K, bool TwoRows>
void sum_sparse_tiles(const char* a, int64_t stride, const Strips& s, char* sums, Pending& before) {
    const int per_step = static_cast<int>(ceil_div(before.rows, most(1, s.counts[0] + s.counts[1])));
    PAREDOWN_SPARSE_STRIP(0, 0, 2, 6);
    PAREDOWN_SPARSE_STRIP(1, 1, 3, 7);
    before.flush();
    _tile_stored(0, sums, kSumsRow);
    _tile_stored(1, sums + kCellBytes, kSumsRow);
    if constexpr (TwoRows) {
        _tile_stored(2, sums + 16 * kSumsRow, kSumsRow);
        _tile_stored(3, sums + 16 * kSumsRow + kCellBytes, kSumsRow);
    }
}

template <Sum S>
void sparse_tiles(const Gemm& g, int64_t begin, int64_t end, void* scratch) {
    const SparseRows r = sparse_rows_of<S>(g, kTileRows);
    char* edge = static_cast<char*>(scratch);  // a direct product needs no scratch but this
    Pending pending[2];
    Finish finish[2];
    int turn = 0;
    configure();
    sparse_walk<S>(
        g, r, begin, end, edge, finish,
        [&](const char* a, int64_t first, int64_t rows, int64_t block, const Strips& s, const Finish& f) {
            const int64_t fresh = block * kTileRows;
            if (fresh >= rows) return;
            // A last block of other than whole tiles begins earlier, its first rows for a second time.
            const int64_t whole = rows - fresh <= 16 ? 16 : kTileRows, start = most(0, least(fresh, rows - whole));
            const int64_t left = least(rows - start, kTileRows);
            const char* at = a + start * r.row_bytes;
            int64_t stride = r.row_bytes;
            if (r.direct && left % 16 != 0) {  // fewer rows than a tile: no row beyond the last may be read
                for (int64_t i = 0; i < left; ++i)
                    std::memcpy(edge + i * r.k_bytes, at + i * stride, static_cast<size_t>(r.k_bytes));
                at = edge;
                stride = r.k_bytes;
            }
            Pending &now = pending[turn], &before = pending[turn ^ 1];
            turn ^= 1;
            const bool two = left > 16;
            if constexpr (S == Sum::bf16)
                (two ? sum_sparse_tiles<Kind::bf16, true> : sum_sparse_tiles<Kind::bf16, false>)(at, stride, s,
                                                                                               now.sums, before);
            else if (g.a_type == DType::u8)
                (two ? sum_sparse_tiles<Kind::u8s8, true> : sum_sparse_tiles<Kind::u8s8, false>)(at, stride, s,
                                                                                               now.sums, before);
            else
                (two ? sum_sparse_tiles<Kind::s8s8, true> : sum_sparse_tiles<Kind::s8s8, false>)(at, stride, s,
                                                                                               now.sums, before);
            now.finish = &f;
            now.clear();
            now.add(first + fresh, static_cast<int>(fresh - start), static_cast<int>(left - (fresh - start)));
        });
    pending[turn ^ 1].flush();  // the other one was done while this one was summed
    _tile_release();
}

// Weights in the form of tiles; those in another stay with the table that this is added to.
template <Sum S>
struct SparseTiles {
    static inline Kernels before;
    static bool mine(const Gemm& g) {
        return as_conv(g).weight_type == weights_of(S) &&
               head_of(g.w).form == static_cast<int64_t>(SparseForm::tiles);
    }
    static bool mine(const Weights& w, SparseForm form) {
        return w.type == weights_of(S) && form == SparseForm::tiles;
    }
    static size_t size(const Weights& w, SparseForm form, const void* from) {
        if (!mine(w, form)) return before.packed_sparse_size(w, form, from);
        return static_cast<size_t>(sparse_head<S>(w, form, from).total);
    }
    static void pack(const Weights& w, SparseForm form, const void* from, void* to) {
        mine(w, form) ? pack_blocks<S>(w, form, from, to) : before.pack_sparse(w, form, from, to);
    }
    static int64_t units(const Gemm& g) {
        if (!mine(g)) return before.sparse.units(g);
        const SparseRows r = sparse_rows_of<S>(g, kTileRows);
        return r.chunks * r.panels * r.blocks;
    }
    static size_t scratch(const Gemm& g) {
        if (!mine(g)) return before.sparse.scratch(g);
        const SparseRows r = sparse_rows_of<S>(g, kTileRows);
        return static_cast<size_t>(((r.direct ? 0 : r.chunk) + kTileRows) * r.k_bytes);
    }
    static void run(const Gemm& g, int64_t begin, int64_t end, void* scratch) {
        mine(g) ? sparse_tiles<S>(g, begin, end, scratch) : before.sparse.run(g, begin, end, scratch);
    }
    static int64_t grain(const Gemm& g) {
        if (!mine(g)) return before.sparse.grain(g);
        const SparseRows r = sparse_rows_of<S>(g, kTileRows);
        return r.direct ? 1 : r.panels * r.blocks;
    }
    static void add(Kernels& t) {
        before = t;
        t.packed_sparse_size = size;
        t.pack_sparse = pack;
        t.sparse = {units, scratch, run, grain};
    }
};

}  // namespace
}  // namespace paredown::engine
