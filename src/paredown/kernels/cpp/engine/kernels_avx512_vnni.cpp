// Product kernels of the avx512_vnni level; what is not here comes from the level below.
#include "kernels.hpp"

namespace paredown::engine {

Kernels avx512_vnni_kernels(const Kernels& base, bool) {
    Kernels t = base;
    t.isa = "avx512_vnni";
    return t;
}

}  // namespace paredown::engine
