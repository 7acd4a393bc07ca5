// The products of an MLP on AMX: two by two tiles of sums that go on where the slice before left them.
// Epilogues are done between the tile products of the block behind them, as in a lone product.
#pragma once
#include "kernels_mlp.hpp"
#include "kernels_tiles.hpp"

namespace paredown::engine {
namespace {

template <Sum S>
class MlpTiles {
public:
    static constexpr Sum kSum = S;
    static constexpr int kUnit = 16, kBlock = kTileRows, kWhole = 16;
    void start() { configure(); }
    void stop() { _tile_release(); }
    void settle() { pending_[turn_ ^ 1].flush(); }
    void multiply(DType a_type, const char* a, int64_t stride, int rows, int64_t bytes, const char* w, const char* from,
                  char* to, const Finish* finish, int64_t row, Ahead ahead) {
        Pending &now = pending_[turn_], &before = pending_[turn_ ^ 1];
        // Sums that are kept are of whole panels: weights of columns beyond are zero.
        const bool two_rows = rows > 16, two_columns = finish == nullptr || finish->columns > 16;
        // The panel stays in L1, rows leave it to others. Integers gained nothing by it: see `pass_of`.
        SumTiles sum;
        if constexpr (S == Sum::bf16)
            sum = sum_tiles_of<Kind::bf16, true, false>(two_rows, two_columns);
        else
            sum = a_type == DType::u8 ? sum_tiles_of<Kind::u8s8, false, false>(two_rows, two_columns)
                                      : sum_tiles_of<Kind::s8s8, false, false>(two_rows, two_columns);
        const int64_t offset = 0;
        sum(a, stride, &offset, 1, bytes, w, from, to == nullptr ? now.sums : to, before, ahead);
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
