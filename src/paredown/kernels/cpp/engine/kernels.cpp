// Kernel tables of the levels usable on this processor (cpu.hpp says which).
#include "kernels.hpp"

#include <algorithm>
#include <map>

#include "../cpu.hpp"

namespace paredown::engine {
namespace {

[[maybe_unused]] bool has_bf16() {
    const auto all = features();
    return std::find(all.begin(), all.end(), "avx512_bf16") != all.end();
}

std::map<std::string, Kernels> build() {
    std::map<std::string, Kernels> all;
    Kernels t = scalar_kernels();
    all["scalar"] = t;
#ifdef PAREDOWN_X86
    for (const std::string& level : levels()) {
        if (level == "avx2") all[level] = t = avx2_kernels(t);
        if (level == "avx512") all[level] = t = avx512_kernels(t);
        if (level == "avx512_vnni") {
            t = avx512_vnni_kernels(t);
            all[level] = t = has_bf16() ? avx512_bf16_kernels(t) : t;
        }
        if (level == "amx") all[level] = t = amx_kernels(t);
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

}  // namespace paredown::engine
