// Run-time dispatch: cpuid, XCR0 and the AMX permission (Intel SDM vol. 1 chapters 13 and 18).
#include "cpu.hpp"

#include <map>
#include <stdexcept>

#ifdef PAREDOWN_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace paredown {
namespace {

struct Features {
    bool avx2 = false, fma = false, avx512 = false, vnni = false, bf16 = false, fp16 = false, vbmi2 = false,
         vpopcntdq = false;
    bool amx_tile = false, amx_bf16 = false, amx_int8 = false, avx_vnni = false, f16c = false;
};

#ifdef PAREDOWN_X86
struct Registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned sub) {
    Registers r;
    __get_cpuid_count(leaf, sub, &r.a, &r.b, &r.c, &r.d);
    return r;
}

uint64_t enabled_state() {
    unsigned low = 0, high = 0;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
}

bool bit(unsigned word, int index) { return (word >> index) & 1U; }

bool amx_permitted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr int request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

Features detect() {
    Features f;
    const Registers one = cpuid(1, 0), seven = cpuid(7, 0), more = cpuid(7, 1);
    if (!bit(one.c, 27)) return f;  // no OSXSAVE: vector state is not saved by the system
    const uint64_t state = enabled_state();
    const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xE6) == 0xE6;
    const bool tiles = (state & 0x60000) == 0x60000;
    f.f16c = ymm && bit(one.c, 29);
    f.fma = ymm && bit(one.c, 12);
    f.avx2 = ymm && bit(seven.b, 5);
    f.avx_vnni = ymm && bit(more.a, 4);
    f.avx512 = zmm && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31);
    f.vnni = f.avx512 && bit(seven.c, 11);
    f.bf16 = f.avx512 && bit(more.a, 5);
    f.vbmi2 = f.avx512 && bit(seven.c, 6);
    f.vpopcntdq = f.avx512 && bit(seven.c, 14);
    f.fp16 = f.avx512 && bit(seven.d, 23);
    if (tiles && bit(seven.d, 24) && amx_permitted()) {
        f.amx_tile = true;
        f.amx_bf16 = bit(seven.d, 22);
        f.amx_int8 = bit(seven.d, 25);
    }
    return f;
}
#else
Features detect() { return {}; }
#endif

const Features& found() {
    static const Features f = detect();
    return f;
}

std::map<std::string, Table> build_tables() {
    std::map<std::string, Table> all;
    Table t = scalar_table();
    all["scalar"] = t;
#ifdef PAREDOWN_X86
    const Features& f = found();
    if (!(f.avx2 && f.fma)) return all;
    all["avx2"] = t = avx2_table(t);
    if (!f.avx512) return all;
    all["avx512"] = t = avx512_table(t);
    if (!f.vnni) return all;
    t = avx512_vnni_table(t);
    if (f.bf16) t = avx512_bf16_table(t);
    if (f.fp16) t = avx512_fp16_table(t);
    all["avx512_vnni"] = t;
    if (f.amx_tile && f.amx_bf16 && f.amx_int8) all["amx"] = amx_table(t);
#endif
    return all;
}

const std::map<std::string, Table>& tables() {
    static const std::map<std::string, Table> all = build_tables();
    return all;
}

}  // namespace

std::vector<std::string> features() {
    const Features& f = found();
    std::vector<std::string> names;
    const std::pair<const char*, bool> all[] = {
        {"avx2", f.avx2},         {"fma", f.fma},           {"f16c", f.f16c},
        {"avx_vnni", f.avx_vnni}, {"avx512", f.avx512},     {"avx512_vnni", f.vnni},
        {"avx512_bf16", f.bf16},  {"avx512_fp16", f.fp16},  {"amx_tile", f.amx_tile},
        {"amx_bf16", f.amx_bf16}, {"amx_int8", f.amx_int8}, {"avx512_vbmi2", f.vbmi2},
        {"avx512_vpopcntdq", f.vpopcntdq},
    };
    for (const auto& [name, present] : all)
        if (present) names.emplace_back(name);
    return names;
}

std::vector<std::string> levels() {
    std::vector<std::string> names;
    for (const char* name : {"scalar", "avx2", "avx512", "avx512_vnni", "amx"})
        if (tables().count(name) != 0) names.emplace_back(name);
    return names;
}

const Table& table(const std::string& level) {
    const auto at = tables().find(level);
    if (at != tables().end()) return at->second;
    std::string known;
    for (const auto& name : levels()) known += (known.empty() ? "" : ", ") + name;
    throw std::invalid_argument("instruction set '" + level + "' is unknown or not usable here; usable: " +
                                known);
}

}  // namespace paredown
