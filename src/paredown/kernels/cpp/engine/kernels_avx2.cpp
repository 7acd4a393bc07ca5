// Product kernels on AVX2 and FMA: 16 registers of 8 floats.
#include "kernels_product.hpp"
#include "kernels_vector.hpp"

namespace paredown::engine {

Kernels avx2_kernels(const Kernels& base) {
    Kernels t = base;
    t.isa = "avx2";
    Products<Sum::f32, Sum::wide, Sum::s16>::add(t);
    add_vector_kernels(t);
    return t;
}

}  // namespace paredown::engine
