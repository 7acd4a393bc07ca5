// The products of an MLP on AMX: two by two tiles of sums that go on where the slice before left them.
// Epilogues are done between the tile products of the block behind them, as in a lone product.
#pragma once
#include "kernels_mlp.hpp"
#include "kernels_tiles.hpp"

namespace paredown::engine {
namespace {

template <Kind K, bool TwoRows, bool TwoColumns>
void more_tiles(const char* a, int64_t stride, int64_t bytes, const char* w, const char* from, char* to,
                Pending& before, Coming coming) {
    // The panel stays in L1, rows leave it to others. Integers gained nothing by it: see `pass_of`.
    constexpr bool kPass = K == Kind::bf16;
    const int per_step = static_cast<int>(ceil_div(before.rows, bytes / 64));
    if (from == nullptr) {
        _tile_zero(0);
        if constexpr (TwoColumns) _tile_zero(1);
        if constexpr (TwoRows) _tile_zero(2);
        if constexpr (TwoRows && TwoColumns) _tile_zero(3);
    } else {
        _tile_loadd(0, from, kSumsRow);
        if constexpr (TwoColumns) _tile_loadd(1, from + 64, kSumsRow);
        if constexpr (TwoRows) _tile_loadd(2, from + 16 * kSumsRow, kSumsRow);
        if constexpr (TwoRows && TwoColumns) _tile_loadd(3, from + 16 * kSumsRow + 64, kSumsRow);
    }
    const char* high = a + 16 * stride;
    for (int64_t k = 0; k < bytes; k += 64, w += 16 * kSumsRow) {
        _tile_loadd(6, w, kSumsRow);
        if constexpr (kPass) _tile_stream_loadd(4, a + k, stride);
        if constexpr (!kPass) _tile_loadd(4, a + k, stride);
        if constexpr (TwoColumns) _tile_loadd(7, w + 64, kSumsRow);
        if constexpr (TwoRows && kPass) _tile_stream_loadd(5, high + k, stride);
        if constexpr (TwoRows && !kPass) _tile_loadd(5, high + k, stride);
        PAREDOWN_TILE_PRODUCT(0, 4, 6);
        if constexpr (TwoColumns) PAREDOWN_TILE_PRODUCT(1, 4, 7);
        if constexpr (TwoRows) PAREDOWN_TILE_PRODUCT(2, 5, 6);
        if constexpr (TwoRows && TwoColumns) PAREDOWN_TILE_PRODUCT(3, 5, 7);
        for (int64_t i = 0; i < coming.lines; ++i, coming.weights += 64) _mm_prefetch(coming.weights, _MM_HINT_T1);
        before.step(per_step);
    }
    before.flush();
    _tile_stored(0, to, kSumsRow);
    if constexpr (TwoColumns) _tile_stored(1, to + 64, kSumsRow);
    if constexpr (TwoRows) _tile_stored(2, to + 16 * kSumsRow, kSumsRow);
    if constexpr (TwoRows && TwoColumns) _tile_stored(3, to + 16 * kSumsRow + 64, kSumsRow);
}

using MoreTiles = void (*)(const char*, int64_t, int64_t, const char*, const char*, char*, Pending&, Coming);

template <Kind K>
MoreTiles more_tiles_of(bool two_rows, bool two_columns) {
    if (two_rows) return two_columns ? more_tiles<K, true, true> : more_tiles<K, true, false>;
    return two_columns ? more_tiles<K, false, true> : more_tiles<K, false, false>;
}

template <Sum S>
class MlpTiles {
public:
    static constexpr Sum kSum = S;
    static constexpr int kUnit = 16, kBlock = kTileRows, kWhole = 16;
    void start() { configure(); }
    void stop() { _tile_release(); }
    void settle() { pending_[turn_ ^ 1].flush(); }
    void multiply(DType a_type, const char* a, int64_t stride, int rows, int64_t bytes, const char* w, const char* from,
                  char* to, const Finish* finish, int64_t row, Coming coming) {
        Pending &now = pending_[turn_], &before = pending_[turn_ ^ 1];
        // Sums that are kept are of whole panels: weights of columns beyond are zero.
        const bool two_rows = rows > 16, two_columns = finish == nullptr || finish->columns > 16;
        MoreTiles sum;
        if constexpr (S == Sum::bf16)
            sum = more_tiles_of<Kind::bf16>(two_rows, two_columns);
        else
            sum = a_type == DType::u8 ? more_tiles_of<Kind::u8s8>(two_rows, two_columns)
                                      : more_tiles_of<Kind::s8s8>(two_rows, two_columns);
        sum(a, stride, bytes, w, from, to == nullptr ? now.sums : to, before, coming);
        if (to != nullptr) return;
        turn_ ^= 1;
        now.finish = finish;
        now.clear();
        now.add(row, 0, rows);
    }

private:
    Pending pending_[2];
    int turn_ = 0;
};

}  // namespace
}  // namespace paredown::engine
