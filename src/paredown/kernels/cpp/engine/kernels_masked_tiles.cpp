// Masked sparse products by the expanding instructions of AVX-512 VBMI2, and by AMX.
//
// On AMX a block is expanded into L1 while the tiles multiply the one before it. A tile of few rows is as
// small as they are: a product of one row takes no longer than its weights take to load.
#include "kernels_sparse_masked.hpp"
#include "kernels_tiles.hpp"

namespace paredown::engine {
namespace {

// Tiles 0 and 1 sum the first `low` rows, 2 and 3 the next `high`; 4 and 5 hold rows, 6 and 7 weights.
void configure_rows(int64_t low, int64_t high) {
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) {
        config.bytes_per_row[tile] = 64;
        config.rows[tile] = 16;
    }
    for (int tile : {0, 1, 4}) config.rows[tile] = static_cast<uint8_t>(low);
    for (int tile : {2, 3, 5}) config.rows[tile] = static_cast<uint8_t>(most(high, 1));
    _tile_loadconfig(&config);
}

template <Kind K, bool TwoRows>
PAREDOWN_INLINE void add_block(const char* a, int64_t stride, const char* w) {
    _tile_loadd(4, a, stride);
    _tile_loadd(6, w, kCellRow);
    PAREDOWN_TILE_PRODUCT(0, 4, 6);
    _tile_loadd(7, w + 64, kCellRow);
    PAREDOWN_TILE_PRODUCT(1, 4, 7);
    if constexpr (TwoRows) {
        _tile_loadd(5, a + 16 * stride, stride);
        PAREDOWN_TILE_PRODUCT(2, 5, 6);
        PAREDOWN_TILE_PRODUCT(3, 5, 7);
    }
}

// Up to 32 rows against one panel. With `packed`, its blocks are expanded to `expanded`: all of them where
// `keep`, else two in turn; without, they lie there already.
template <Kind K, bool TwoRows>
void sum_masked_tiles(const char* a, int64_t stride, int64_t blocks, const char* packed, char* expanded, bool keep,
                      char* sums) {
    constexpr Sum S = K == Kind::bf16 ? Sum::bf16 : Sum::u8s8;
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (TwoRows) {
        _tile_zero(2);
        _tile_zero(3);
    }
    const auto place = [&](int64_t block) { return expanded + (keep ? block : block % 2) * kBlockBytes; };
    if (packed == nullptr) {
        for (int64_t block = 0; block < blocks; ++block)
            add_block<K, TwoRows>(a + block * kBlockDepth, stride, place(block));
    } else {
        MaskedReader<S> reader(packed);
        reader.block(place(0));
        for (int64_t block = 0; block < blocks; ++block) {
            if (block + 1 < blocks) reader.block(place(block + 1));
            add_block<K, TwoRows>(a + block * kBlockDepth, stride, place(block));
        }
    }
    _tile_stored(0, sums, kSumsRow);
    _tile_stored(1, sums + 64, kSumsRow);
    if constexpr (TwoRows) {
        _tile_stored(2, sums + 16 * kSumsRow, kSumsRow);
        _tile_stored(3, sums + 16 * kSumsRow + 64, kSumsRow);
    }
}

using SumMaskedTiles = void (*)(const char*, int64_t, int64_t, const char*, char*, bool, char*);

template <Sum S>
SumMaskedTiles sum_masked_tiles_of(DType a_type, bool two_rows) {
    if constexpr (S == Sum::bf16)
        return two_rows ? sum_masked_tiles<Kind::bf16, true> : sum_masked_tiles<Kind::bf16, false>;
    if (a_type == DType::u8)
        return two_rows ? sum_masked_tiles<Kind::u8s8, true> : sum_masked_tiles<Kind::u8s8, false>;
    return two_rows ? sum_masked_tiles<Kind::s8s8, true> : sum_masked_tiles<Kind::s8s8, false>;
}

// Bytes of expanded weights: two blocks, or the panel where several groups of rows read it.
int64_t expanded_bytes(const Gemm& g) {
    return (g.m <= kTileRows ? 2 : masked_head_of(g.w).blocks) * kBlockBytes;
}

template <Sum S>
void masked_tiles(const Gemm& g, int64_t begin, int64_t end, void* scratch) {
    const MaskedHead head = masked_head_of(g.w);
    const MaskedRows<S> rows(g, kBlockDepth);
    char* expanded = static_cast<char*>(scratch);
    const char* a = rows.place(g, expanded + expanded_bytes(g));
    alignas(64) char sums[kTileRows * kSumsRow];
    Finish finish = make_finish<is_integer(S)>(g.ep, g.c, g.ldc);
    const bool several = g.m > kTileRows;
    configure_rows(least(g.m, 16), least(g.m, kTileRows) - 16);
    const SumMaskedTiles sum = sum_masked_tiles_of<S>(g.a_type, g.m > 16);
    for (int64_t panel = begin; panel < end; ++panel) {
        const char* packed = masked_panel<S>(g.w, head, panel);
        select_panel<S>(finish, g, head, panel);
        for (int64_t fresh = 0; fresh < g.m; fresh += kTileRows) {
            // The last group begins earlier where it would be short, its first rows for a second time.
            const int64_t start = most(0, least(fresh, g.m - kTileRows));
            sum(a + start * rows.row_bytes, rows.row_bytes, head.blocks, fresh == 0 ? packed : nullptr, expanded,
                several, sums);
            const int64_t left = least(g.m - fresh, kTileRows);
            finish.rows(finish, sums + (fresh - start) * kSumsRow, fresh, static_cast<int>(left));
        }
    }
    _tile_release();
}

// Masked weights on AMX, packed by the vectors' table.
template <Sum S>
struct MaskedTiles {
    static inline Kernels before;
    static bool mine(const Gemm& g) {
        return as_conv(g).weight_type == weights_of(S) &&
               head_of(g.w).form == static_cast<int64_t>(SparseForm::masked);
    }
    static size_t scratch(const Gemm& g) {
        if (!mine(g)) return before.sparse.scratch(g);
        return static_cast<size_t>(expanded_bytes(g) + MaskedRows<S>(g, kBlockDepth).copied(g));
    }
    static void run(const Gemm& g, int64_t begin, int64_t end, void* scratch) {
        mine(g) ? masked_tiles<S>(g, begin, end, scratch) : before.sparse.run(g, begin, end, scratch);
    }
    static int64_t grain(const Gemm& g) {
        if (!mine(g)) return before.sparse.grain(g);
        return MaskedRows<S>(g, kBlockDepth).direct ? 1 : before.sparse.units(g);
    }
    static void add(Kernels& t) {
        before = t;
        t.sparse.scratch = scratch;
        t.sparse.run = run;
        t.sparse.grain = grain;
    }
};

}  // namespace

Kernels avx512_vbmi2_kernels(const Kernels& base) {
    Kernels t = base;
    add_masked<Sum::bf16, Sum::u8s8>(t);
    return t;
}

Kernels amx_vbmi2_kernels(const Kernels& base) {
    Kernels t = base;
    MaskedTiles<Sum::bf16>::add(t);
    MaskedTiles<Sum::s8>::add(t);
    return t;
}

}  // namespace paredown::engine
