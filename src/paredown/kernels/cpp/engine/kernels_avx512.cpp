// Product kernels of the avx512 level; what is not here comes from the level below.
#include "kernels.hpp"

namespace paredown::engine {

Kernels avx512_kernels(const Kernels& base) {
    Kernels t = base;
    t.isa = "avx512";
    return t;
}

}  // namespace paredown::engine
