// Product kernels on AVX-512 BF16: pairs of bf16. All else anew too, for its one-instruction rounding.
#include "kernels_attention.hpp"
#include "kernels_expand.hpp"
#include "kernels_matvec_vnni.hpp"
#include "kernels_mlp_rows.hpp"
#include "kernels_sparse_masked.hpp"
#include "kernels_vector.hpp"

namespace paredown::engine {

Kernels avx512_bf16_kernels(const Kernels& base) {
    Kernels t = base;
    add_products<Sum::bf16>(t);
    add_expansions<Sum::bf16>(t);
    add_mlps<Sum::bf16>(t);
    add_sparse<Sum::bf16>(t);
    add_masked<Sum::bf16>(t);
    add_vector_kernels(t);
    Nibbles::add(t);
    using Attend = AttentionOf<FloatAttention>;
    t.attention = {Attend::units, Attend::scratch, Attend::run};
    return t;
}

}  // namespace paredown::engine
