// Product kernels on AVX-512 BF16: pairs of bf16. All else anew too, for its one-instruction rounding.
#include "kernels_attention.hpp"
#include "kernels_expand.hpp"
#include "kernels_product.hpp"
#include "kernels_vector.hpp"

namespace paredown::engine {

Kernels avx512_bf16_kernels(const Kernels& base) {
    Kernels t = base;
    Products<Sum::f32, Sum::bf16, Sum::u8s8>::add(t);
    Expand<RowProduct<Sum::f32>, RowProduct<Sum::bf16>, RowProduct<Sum::u8s8>>::add(t);
    add_vector_kernels(t);
    using Attend = AttentionOf<FloatAttention>;
    t.attention = {Attend::units, Attend::scratch, Attend::run};
    return t;
}

}  // namespace paredown::engine
