// Product kernels of the avx2 level; what is not here comes from the level below.
#include "kernels.hpp"

namespace paredown::engine {

Kernels avx2_kernels(const Kernels& base) {
    Kernels t = base;
    t.isa = "avx2";
    return t;
}

}  // namespace paredown::engine
