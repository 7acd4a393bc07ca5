// The products of an MLP by vector instructions: a few rows at a time, sums that go on from slice to slice.
#pragma once
#include "kernels_mlp.hpp"

namespace paredown::engine {
namespace {

// Sums of `Rows` rows of floats against one panel, each going on from that at `sums`. Its own function: within
// another one the compiler keeps the sums in memory.
template <Sum S, int Rows>
__attribute__((noinline)) void more_rows(const char* a, int64_t stride, int64_t bytes, const char* w, char* sums) {
    typename Dot<S>::V acc[Rows][2];
    for (int r = 0; r < Rows; ++r)
        for (int i = 0; i < 2; ++i) std::memcpy(&acc[r][i], sums + (r * kPanel + i * W) * 4, sizeof acc[r][i]);
    add_rows<S, Rows>(acc, a, stride, bytes, w);
    for (int r = 0; r < Rows; ++r)
        for (int i = 0; i < 2; ++i) std::memcpy(sums + (r * kPanel + i * W) * 4, &acc[r][i], sizeof acc[r][i]);
}

template <Sum S>
struct MlpRows {
    static constexpr Sum kSum = S;
    static constexpr int kUnit = kRows, kBlock = kRows, kWhole = 1;
    void start() {}
    void settle() {}
    void stop() {}
    // From nothing where `from` is null; to be finished where `to` is.
    void multiply(DType, const char* a, int64_t stride, int rows, int64_t bytes, const char* w, const char* from,
                  char* to, const Finish* finish, int64_t row, Ahead) {
        char* sums = to == nullptr ? own_ : to;
        if (from == nullptr) {
            const int64_t offset = 0;
            sum_rows_of<S>(rows)(a, stride, &offset, 1, bytes, w, sums);
        } else {
            go_on(a, stride, rows, bytes, w, from, sums);
        }
        if (to == nullptr) finish->rows(*finish, sums, row, rows);
    }

private:
    void go_on(const char* a, int64_t stride, int rows, int64_t bytes, const char* w, const char* from, char* sums) {
        if constexpr (is_integer(S)) {  // in any order the same
            const int64_t offset = 0;
            sum_rows_of<S>(rows)(a, stride, &offset, 1, bytes, w, own_);
            for (int64_t i = 0; i < rows * kSumsRow; i += W * 4)
                store(reinterpret_cast<int32_t*>(sums + i),
                      add_int(load(reinterpret_cast<const int32_t*>(from + i)),
                              load(reinterpret_cast<const int32_t*>(own_ + i))));
        } else {
            if (from != sums) std::memcpy(sums, from, static_cast<size_t>(rows * kSumsRow));
            int r = 0;  // whole blocks but for the last
            const auto some = [&](auto count) {
                constexpr int n = decltype(count)::value;
                for (; r + n <= rows; r += n) more_rows<S, n>(a + r * stride, stride, bytes, w, sums + r * kSumsRow);
            };
            some(std::integral_constant<int, kRows>());
            some(std::integral_constant<int, kRows / 2>());
            some(std::integral_constant<int, 1>());
        }
    }

    alignas(64) char own_[kRows * kSumsRow];
};

template <Sum... S>
void add_mlps(Kernels& t) { (MlpOf<MlpRows<S>>::add(t), ...); }

}  // namespace
}  // namespace paredown::engine
