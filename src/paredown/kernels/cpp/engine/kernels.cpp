// Kernel tables of the levels usable on this processor (cpu.hpp says which).
#include "kernels.hpp"

#include <algorithm>
#include <map>

#include "../cpu.hpp"

namespace paredown::engine {
namespace {

[[maybe_unused]] bool has(const char* feature) {
    const auto all = features();
    return std::find(all.begin(), all.end(), feature) != all.end();
}

std::map<std::string, Kernels> build() {
    std::map<std::string, Kernels> all;
    Kernels t = scalar_kernels();
    all["scalar"] = t;
#ifdef PAREDOWN_X86
    const bool bf16 = has("avx512_bf16"), vbmi2 = bf16 && has("avx512_vbmi2");
    for (const std::string& level : levels()) {
        if (level == "avx2") all[level] = t = avx2_kernels(t);
        if (level == "avx512") all[level] = t = avx512_kernels(t);
        if (level == "avx512_vnni") {
            t = avx512_vnni_kernels(t);
            if (bf16) t = avx512_bf16_kernels(t);
            if (vbmi2) t = avx512_vbmi2_kernels(t);
            all[level] = t;
        }
        if (level == "amx") {
            t = amx_kernels(t);
            all[level] = vbmi2 ? amx_vbmi2_kernels(t) : t;
        }
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
