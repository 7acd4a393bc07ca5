// Tables of products of signs for the levels usable on this processor (cpu.hpp says which).
#include "signs.hpp"

#include <algorithm>
#include <map>

#include "../cpu.hpp"

namespace paredown::signs {
namespace {

std::map<std::string, Kernels> build() {
    std::map<std::string, Kernels> all;
    Kernels t = scalar_kernels();
    all["scalar"] = t;
#ifdef PAREDOWN_X86
    const auto found = features();
    const bool counts = std::find(found.begin(), found.end(), "avx512_vpopcntdq") != found.end();
    for (const std::string& level : levels()) {
        if (level == "avx2") t = avx2_kernels(t);
        if (level == "avx512" && counts) t = avx512_kernels(t);
        all[level] = t;
    }
#endif
    return all;
}

}  // namespace

const Kernels& kernels(const std::string& isa) {
    static const std::map<std::string, Kernels> all = build();
    const auto at = all.find(isa);
    if (at != all.end()) return at->second;
    table(isa);  // throws, naming the usable levels
    return all.at("scalar");
}

}  // namespace paredown::signs
