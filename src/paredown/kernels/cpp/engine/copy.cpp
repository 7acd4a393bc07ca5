#include "copy.hpp"

#include <cstring>
#include <string>

namespace paredown::engine {
namespace {

constexpr int kDims = 6;

// The innermost dimension is one unit's work.
int64_t units(const StridedCopy& a) {
    int64_t count = 1;
    for (int d = 0; d < kDims - 1; ++d) count *= a.size[d];
    return a.size[kDims - 1] == 0 ? 0 : count;
}

template <typename T>
void row(const T* in, T* out, int64_t n, int64_t from, int64_t to) {
    if (from == 1 && to == 1) {
        std::memcpy(out, in, size_t(n) * sizeof(T));
        return;
    }
    for (int64_t i = 0; i < n; ++i) std::memcpy(out + i * to, in + i * from, sizeof(T));
}

template <typename T>
void copy(const StridedCopy& a, int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
        int64_t rest = unit, from = 0, to = 0;
        for (int d = kDims - 2; d >= 0; --d) {
            const int64_t at = rest % a.size[d];
            rest /= a.size[d];
            from += at * a.in_stride[d];
            to += at * a.out_stride[d];
        }
        row(static_cast<const T*>(a.in) + from, static_cast<T*>(a.out) + to, a.size[kDims - 1],
            a.in_stride[kDims - 1], a.out_stride[kDims - 1]);
    }
}

void run(const StridedCopy& a, int64_t begin, int64_t end, void*) {
    switch (a.width) {
        case 1: copy<uint8_t>(a, begin, end); break;
        case 2: copy<uint16_t>(a, begin, end); break;
        case 4: copy<uint32_t>(a, begin, end); break;
        default: copy<uint64_t>(a, begin, end); break;
    }
}

}  // namespace

void read(Fields& f, StridedCopy& a) {
    f.get("in", a.in);
    f.get("out", a.out);
    f.get("width", a.width);
    for (int d = 0; d < kDims; ++d) {
        const std::string at = std::to_string(d);
        f.get(("size" + at).c_str(), a.size[d]);
        f.get(("in_stride" + at).c_str(), a.in_stride[d]);
        f.get(("out_stride" + at).c_str(), a.out_stride[d]);
    }
    if (a.width != 1 && a.width != 2 && a.width != 4 && a.width != 8)
        throw std::invalid_argument("elements of 1, 2, 4 or 8 bytes are copied");
}

const Entry<StridedCopy>& strided_copy() {
    static const Entry<StridedCopy> entry{units, nullptr, run};
    return entry;
}

}  // namespace paredown::engine
