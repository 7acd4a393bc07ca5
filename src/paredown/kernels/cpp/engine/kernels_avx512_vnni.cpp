// Product kernels on AVX-512 VNNI: quads of bytes.
#include "kernels_expand.hpp"
#include "kernels_product.hpp"

namespace paredown::engine {

Kernels avx512_vnni_kernels(const Kernels& base) {
    Kernels t = base;
    t.isa = "avx512_vnni";
    Products<Sum::f32, Sum::wide, Sum::u8s8>::add(t);
    Expand<RowProduct<Sum::f32>, RowProduct<Sum::wide>, RowProduct<Sum::u8s8>>::add(t);
    return t;
}

}  // namespace paredown::engine
