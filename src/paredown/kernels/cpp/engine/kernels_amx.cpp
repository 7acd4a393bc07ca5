// Product kernels of the amx level; what is not here comes from the level below.
#include "kernels.hpp"

namespace paredown::engine {

Kernels amx_kernels(const Kernels& base) {
    Kernels t = base;
    t.isa = "amx";
    return t;
}

}  // namespace paredown::engine
