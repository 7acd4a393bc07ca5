// Products of signs (XNOR-Net, arXiv:1603.05279, section 3.2) and of channels along a spanning tree
// (MST-compression, arXiv:2308.13735, eq. 3): one table per instruction set, chosen at run time.
//
// A sign is a bit, set for -1; 64 stand in a word, the first lowest, and what a row's last words have no
// sign for is zero. Sums are exact: n - 2 popcount(a xor w). No entry allocates or throws.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace paredown::signs {

// Where sums go: int32 as they are, or float32 gain * sum + offset where `gain` is given, in two roundings.
struct Out {
    int32_t* sums = nullptr;
    float* scaled = nullptr;
    const float* gain = nullptr;
    const float* offset = nullptr;
};

// out (rows, channels) of packed rows and packed channels.
struct Product {
    const uint64_t* a = nullptr;  // (rows, words)
    const uint64_t* w = nullptr;  // (channels, words)
    int64_t rows = 0, channels = 0, words = 0;
    int32_t n = 0;
    Out out;
};

// One channel of a plan: made of another's sums, or of nothing (parent -1: then all its signs are listed).
// At `list` stand the inputs to be added where this channel's sign is +1, then those where it is -1, each
// list filled up to a multiple of kList: the first with input `columns`, the second with `columns` + 1.
struct Step {
    int32_t channel = 0, parent = -1;
    int32_t plus = 0, minus = 0;  // lengths, filled up
    int32_t list = 0;
    int32_t differs = 0;  // inputs in both lists, before filling up
    int32_t behind = 0;   // inputs that differ along the whole path to this channel, itself included
};
constexpr int64_t kList = 8;

// out (channels, rows): each channel from its parent's sums, which stands before it.
struct Along {
    const uint64_t* a = nullptr;  // (rows, words)
    const Step* steps = nullptr;
    const int32_t* lists = nullptr;
    int64_t rows = 0, channels = 0, words = 0;
    int32_t n = 0;
    Out out;
};

// Every `run` takes a range of its work units, rows in blocks, and a scratch area of its own per thread.
template <typename Args>
struct Entry {
    int64_t (*units)(const Args&) = nullptr;
    size_t (*scratch)(const Args&) = nullptr;  // bytes, 64-byte aligned
    void (*run)(const Args&, int64_t begin, int64_t end, void* scratch) = nullptr;
};

struct Kernels {
    // x (rows, n) to words (rows, ceil(n / 64)): a bit is set where x < threshold.
    void (*pack)(const float* x, int64_t rows, int64_t n, const float* threshold, uint64_t* out) = nullptr;
    Entry<Product> product;
    Entry<Along> sliced;   // positions side by side, counts in bit slices
    Entry<Along> gathers;  // position by position, inputs looked up: the tree as it is written
};

Kernels scalar_kernels();
#ifdef PAREDOWN_X86
Kernels avx2_kernels(const Kernels& base);
Kernels avx512_kernels(const Kernels& base);
#endif

// The table of a level; throws std::invalid_argument naming the usable ones.
const Kernels& kernels(const std::string& isa);

}  // namespace paredown::signs
