// A copy between two strided tensors of up to six dimensions: what no kernel reads as it lies.
#pragma once
#include "fields.hpp"

namespace paredown::engine {

struct StridedCopy {
    const void* in = nullptr;
    void* out = nullptr;
    int64_t width = 4;  // bytes of an element: 1, 2, 4 or 8
    // Dimensions from the slowest to the fastest of `out`; strides in elements, 0 repeats.
    int64_t size[6] = {1, 1, 1, 1, 1, 1};
    int64_t in_stride[6] = {0, 0, 0, 0, 0, 0};
    int64_t out_stride[6] = {0, 0, 0, 0, 0, 0};
};

void read(Fields& f, StridedCopy& a);

const Entry<StridedCopy>& strided_copy();

}  // namespace paredown::engine
