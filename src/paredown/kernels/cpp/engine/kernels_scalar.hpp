// The two files of the scalar reference, joined.
#pragma once
#include "kernels.hpp"

namespace paredown::engine {

// Fills in the kernels that go row by row or pixel by pixel: norms, softmax, pooling, and so on.
void add_scalar_rows(Kernels& table);
// Fills in sparse products (kernels_sparse_scalar.cpp).
void add_scalar_sparse(Kernels& table);

}  // namespace paredown::engine
