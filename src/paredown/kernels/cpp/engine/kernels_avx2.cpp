// Product kernels on AVX2 and FMA: 16 registers of 8 floats.
#include "kernels_attention.hpp"
#include "kernels_expand.hpp"
#include "kernels_mlp_rows.hpp"
#include "kernels_sparse_masked.hpp"
#include "kernels_sparse_single.hpp"
#include "kernels_vector.hpp"

namespace paredown::engine {

Kernels avx2_kernels(const Kernels& base) {
    Kernels t = base;
    t.isa = "avx2";
    add_products<Sum::f32, Sum::wide, Sum::s16>(t);
    add_expansions<Sum::f32, Sum::wide, Sum::s16>(t);
    add_mlps<Sum::f32, Sum::wide, Sum::s16>(t);
    add_sparse<Sum::f32, Sum::wide, Sum::s16>(t);
    SparseSingle::add(t);
    add_masked<Sum::f32, Sum::wide, Sum::s16>(t);
    add_vector_kernels(t);
    using Attend = AttentionOf<FloatAttention>;
    t.attention = {Attend::units, Attend::scratch, Attend::run};
    return t;
}

}  // namespace paredown::engine
