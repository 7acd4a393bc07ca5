// Product kernels on AMX: two by two tiles of 16 x 16 sums. Tiles 0-3 sum, 4-5 hold rows, 6-7 weights.
//
// A tile product takes 16 cycles in which the vector units idle, so the epilogue of the block before is
// done row by row between the tile products of the present one.
#include "kernels_attention.hpp"
#include "kernels_expand.hpp"
#include "kernels_mlp_tiles.hpp"
#include "kernels_sparse_tiles.hpp"

namespace paredown::engine {
namespace {

// How tiles cut rows: blocks of 32 of a chunk. A matrix of which two threads have their own rows is cut so that
// both have whole blocks of it, as 13 tiles (of 197 rows) would be seven for one and six for the other. What
// is left, the tail, is done with each panel of weights by the thread that owns it: half of them each.
template <Sum S>
struct Tiles {
    static int64_t own(const Geometry& g) { return ceil_div((g.lines - 1) * g.pitch + g.line, kTileRows); }
    static int64_t blocks(const Geometry& g) { return own(g) + ceil_div(g.tail, kTileRows); }
    static Geometry geometry(const Conv& v) {
        Geometry g = geometry_of<S>(v);
        constexpr int64_t pair = 2 * kTileRows;
        const int64_t pixels = g.v.out_w;
        if (!g.pointwise || !g.direct || g.bands != 2 || pixels < pair) return g;
        g.line = g.pitch = pixels / pair * kTileRows;
        g.tail = pixels % pair;
        return g;
    }
};

// Whether tiles come by a load that leaves L1 to others: what is read once for each block or panel would push
// out what is read again and again.
struct Pass {
    bool rows = false, weights = false;
};

template <Kind K>
SumTiles sum_tiles_of(bool two_rows, bool two_columns, Pass pass) {
    if (pass.rows)
        return pass.weights ? sum_tiles_of<K, true, true>(two_rows, two_columns)
                            : sum_tiles_of<K, true, false>(two_rows, two_columns);
    return pass.weights ? sum_tiles_of<K, false, true>(two_rows, two_columns)
                        : sum_tiles_of<K, false, false>(two_rows, two_columns);
}

// L1 holds the panel or the rows that taps share, beside what passes by.
constexpr int64_t kPanelStays = 44 << 10, kTapsStay = 24 << 10, kAllStay = 32 << 10;

// Of bf16: integers gained nothing by it, as their rows are half as long and their epilogues longer.
Pass pass_of(const Geometry& g) {
    const int64_t blocks = Tiles<Sum::bf16>::blocks(g), panel = g.l.panel_bytes();
    if (blocks == 1) return {false, true};  // each weight is read once, the rows by every panel
    if (!g.l.columns && g.l.taps > 1) return {false, panel > kTapsStay};  // taps read the same rows
    if (blocks * kTileRows * g.l.k_bytes + panel <= kAllStay) return {};
    return {true, panel > kPanelStays};
}

template <Sum S>
void tile_product(const Conv& v, int64_t begin, int64_t end, void* scratch) {
    const Geometry g = Tiles<S>::geometry(v);
    int64_t offsets[kMaxTaps];
    tap_offsets(g, offsets);
    const int64_t taps = g.l.columns ? 1 : g.l.taps;
    const int64_t tap_bytes = g.l.columns ? g.l.k_bytes : g.l.tap_bytes;
    const int64_t own = Tiles<S>::own(g), blocks = Tiles<S>::blocks(g);
    const int64_t part = ceil_div(g.l.panel_bytes(), blocks * 64);  // lines
    char* edge = static_cast<char*>(scratch);  // a direct product needs no scratch but this
    Pending pending[2];
    Finish finish[2];
    int turn = 0;
    [[maybe_unused]] const Pass pass = S == Sum::bf16 ? pass_of(g) : Pass{};
    configure();
    walk<S, Tiles<S>>(
        g, begin, end, static_cast<char*>(scratch), finish,
        [&](const char* a, int64_t first, int64_t rows, int64_t block, const char* w, const Finish& f) {
            const int64_t lines = g.flat ? 1 : rows / g.line;
            int64_t total = g.flat ? rows : (lines - 1) * g.pitch + g.line;
            int64_t start = block * kTileRows;
            if (block >= own) {  // of the tail: rows counted from the matrix's first
                const bool second = f.column / kPanel * 2 >= g.l.panels;
                if (second != (first > 0)) return;
                a -= first * g.row_bytes;
                first = 0;
                start = 2 * g.line + (block - own) * kTileRows;
                total = 2 * g.line + g.tail;
            }
            if (start >= total) return;
            // A last block of other than whole tiles begins earlier, its first rows for a second time.
            const int64_t fresh = start, whole = total - start <= 16 ? 16 : kTileRows;
            start = most(0, least(start, total - whole));
            const int64_t left = least(total - start, kTileRows);
            const char* at = a + start * g.row_bytes;
            int64_t stride = g.row_bytes;
            if (g.direct && left % 16 != 0) {  // fewer rows than a tile: no row beyond the last may be read
                for (int64_t r = 0; r < left; ++r)
                    std::memcpy(edge + r * tap_bytes, at + r * stride, static_cast<size_t>(tap_bytes));
                at = edge;
                stride = tap_bytes;
            }
            Pending &now = pending[turn], &before = pending[turn ^ 1];
            turn ^= 1;
            const bool two_rows = left > 16, two_columns = f.columns > 16;
            SumTiles sum;
            if constexpr (S == Sum::bf16)
                sum = sum_tiles_of<Kind::bf16>(two_rows, two_columns, pass);
            else
                sum = v.in_type == DType::u8 ? sum_tiles_of<Kind::u8s8, false, false>(two_rows, two_columns)
                                             : sum_tiles_of<Kind::s8s8, false, false>(two_rows, two_columns);
            Ahead ahead;
            ahead.weights = w + g.l.panel_bytes() + block * part * 64;
            ahead.lines = ceil_div(part, taps * (tap_bytes / 64));
            sum(at, stride, offsets, taps, tap_bytes, w, nullptr, now.sums, before, ahead);
            now.finish = &f;
            now.clear();
            const int skipped = static_cast<int>(fresh - start);
            if (g.flat) {
                now.add(first + fresh, skipped, static_cast<int>(left) - skipped);
                return;
            }
            // Between two lines lie outputs that are none: their sums are left out.
            for (int64_t r = skipped; r < left;) {
                const int64_t line = (start + r) / g.pitch, x = (start + r) % g.pitch;
                const int64_t run = least(left - r, g.pitch - x);
                now.add(first + line * g.line + x, static_cast<int>(r),
                        static_cast<int>(least(run, g.line - x)));
                r += run;
            }
        });
    // `turn` points at the older of the two, which is done already.
    pending[turn ^ 1].flush();
    _tile_release();
}

template <Sum S>
using TileProducts = Products<S, Tiles<S>, tile_product<S>>;

// bf16 attention: scores and values by tiles, rows of 32.
struct TileAttention {
    static constexpr Sum kSum = Sum::bf16;
    static constexpr int kBlock = kTileRows;
    static constexpr int kWhole = 16;  // rows are read in multiples of this
    static void start() { configure(); }
    static void stop() { _tile_release(); }
    static void multiply(const char* a, int64_t stride, int rows, int64_t bytes, const char* w, float* sums) {
        Pending none;  // nothing waits: the epilogue of attention is not one of rows
        const int64_t offset = 0;
        sum_tiles_of<Kind::bf16, false, false>(rows > 16, true)(a, stride, &offset, 1, bytes, w, nullptr,
                                                                reinterpret_cast<char*>(sums), none, Ahead());
    }
};

// The same for the rows of an expansion. Rows beyond the last of a block are multiplied too, and left.
template <Sum S>
struct TileProduct {
    static constexpr Sum kSum = S;
    static constexpr int kBlock = kTileRows;
    static void start() { configure(); }
    static void stop() { _tile_release(); }
    static void multiply(DType a_type, const char* a, int64_t stride, int rows, int64_t bytes, const char* w,
                         char* sums) {
        Pending none;
        const int64_t offset = 0;
        SumTiles sum;
        if constexpr (S == Sum::bf16)
            sum = sum_tiles_of<Kind::bf16, false, false>(rows > 16, true);
        else
            sum = a_type == DType::u8 ? sum_tiles_of<Kind::u8s8, false, false>(rows > 16, true)
                                      : sum_tiles_of<Kind::s8s8, false, false>(rows > 16, true);
        sum(a, stride, &offset, 1, bytes, w, nullptr, sums, none, Ahead());
    }
};

}  // namespace

Kernels amx_kernels(const Kernels& base) {
    Kernels t = base;  // weights lie as on AVX-512 VNNI and BF16
    t.isa = "amx";
    TileProducts<Sum::bf16>::add(t);
    TileProducts<Sum::s8>::add(t);
    Expand<TileProduct<Sum::bf16>>::add(t);
    Expand<TileProduct<Sum::s8>>::add(t);
    MlpOf<MlpTiles<Sum::bf16>>::add(t);
    MlpOf<MlpTiles<Sum::s8>>::add(t);
    using Attend = AttentionOf<TileAttention>;
    t.attention = {Attend::units, Attend::scratch, Attend::run};
    SparseTiles<Sum::bf16>::add(t);
    SparseTiles<Sum::s8>::add(t);
    return t;
}

}  // namespace paredown::engine
