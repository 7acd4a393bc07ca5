// Product kernels on AVX-512 VNNI: quads of bytes.
#include "kernels_expand.hpp"
#include "kernels_matvec_vnni.hpp"
#include "kernels_mlp_rows.hpp"
#include "kernels_sparse_masked.hpp"

namespace paredown::engine {

Kernels avx512_vnni_kernels(const Kernels& base) {
    Kernels t = base;
    t.isa = "avx512_vnni";
    add_products<Sum::u8s8>(t);
    add_expansions<Sum::u8s8>(t);
    add_mlps<Sum::u8s8>(t);
    add_sparse<Sum::u8s8>(t);
    add_masked<Sum::u8s8>(t);
    Nibbles::add(t);
    return t;
}

}  // namespace paredown::engine
