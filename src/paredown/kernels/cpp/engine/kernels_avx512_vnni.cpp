// Product kernels on AVX-512 VNNI (quads of bytes) and, where there, AVX-512 BF16 (pairs of bf16).
#include "kernels_product.hpp"

namespace paredown::engine {

Kernels avx512_vnni_kernels(const Kernels& base, bool bf16) {
    Kernels t = base;
    t.isa = "avx512_vnni";
    if (bf16)
        Products<Sum::f32, Sum::bf16, Sum::u8s8>::add(t);
    else
        Products<Sum::f32, Sum::wide, Sum::u8s8>::add(t);
    return t;
}

}  // namespace paredown::engine
