// Single kernels called by name with the fields of their argument struct; addresses come as integers.
// For tests and benchmarks, which keep the tensors alive and in bounds; programs use the engine.
#include "kernels_bind.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <thread>

#include "fields.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace paredown::engine {
namespace {

struct Free {
    void operator()(char* p) const { std::free(p); }
};
using Area = std::unique_ptr<char, Free>;

// Filled with 0xFF: NaN in every float type, so that reading what was never written shows.
Area poisoned(size_t bytes) {
    const size_t rounded = (bytes / 64 + 1) * 64;
    Area area(static_cast<char*>(std::aligned_alloc(64, rounded)));
    if (area == nullptr) throw std::bad_alloc();
    std::memset(area.get(), 0xFF, rounded);
    return area;
}

void set_addresses(Fields& f, const std::map<std::string, uintptr_t>& addresses) {
    for (const Patch& place : f.places) {
        const uintptr_t address = addresses.at(std::to_string(place.ref.index));
        std::memcpy(place.where, &address, sizeof address);
    }
}

// Reads numbers, words and, under names ending in '*', addresses.
template <typename Args>
Args arguments(const nb::dict& given, const char* what) {
    Fields f;
    std::map<std::string, uintptr_t> addresses;
    for (const auto& [key, value] : given) {
        auto name = nb::cast<std::string>(key);
        if (name.back() == '*') {
            name.pop_back();
            const auto index = static_cast<int64_t>(addresses.size());
            addresses[std::to_string(index)] = nb::cast<uintptr_t>(value);
            f.refs[name] = {Ref::Space::constant, index, 0};
        } else if (nb::isinstance<nb::str>(value)) {
            f.words[name] = nb::cast<std::string>(value);
        } else {
            f.numbers[name] = nb::cast<double>(value);
        }
    }
    Args args;
    read(f, args);
    f.demand_empty(what);
    set_addresses(f, addresses);
    return args;
}

template <typename Args>
double run(const Entry<Args>& entry, const Args& args, int parts, int threads, int repeats) {
    if (entry.run == nullptr) throw std::invalid_argument("this instruction set has no such kernel");
    const int64_t units = entry.units(args);
    std::vector<Area> areas;
    for (int i = 0; i < threads; ++i) areas.push_back(poisoned(entry.scratch(args)));
    const auto part = [&](int i, int of, void* scratch) {
        const int64_t begin = units * i / of, end = units * (i + 1) / of;
        if (begin < end) entry.run(args, begin, end, scratch);
    };
    nb::gil_scoped_release release;
    double best = 1e30;
    for (int repeat = 0; repeat < repeats; ++repeat) {
        const auto start = std::chrono::steady_clock::now();
        if (threads == 1) {
            for (int i = parts - 1; i >= 0; --i) part(i, parts, areas[0].get());
        } else {
            std::vector<std::thread> others;
            for (int i = 1; i < threads; ++i)
                others.emplace_back(part, i, threads, areas[static_cast<size_t>(i)].get());
            part(0, threads, areas[0].get());
            for (auto& t : others) t.join();
        }
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        best = took.count() < best ? took.count() : best;
    }
    return best;
}

double call(const std::string& isa, const std::string& op, const nb::dict& fields, int parts, int threads,
            int repeats) {
    const Kernels& t = kernels(isa);
    const auto one = [&](const auto& entry, auto args) { return run(entry, args, parts, threads, repeats); };
    const char* what = op.c_str();
    if (op == "gemm") return one(t.gemm, arguments<Gemm>(fields, what));
    if (op == "sparse") return one(t.sparse, arguments<Gemm>(fields, what));
    if (op == "conv") return one(t.conv, arguments<Conv>(fields, what));
    if (op == "depthwise") return one(t.depthwise, arguments<Conv>(fields, what));
    if (op == "expand_depthwise") return one(t.expand_depthwise, arguments<ExpandDepthwise>(fields, what));
    if (op == "mlp") return one(t.mlp, arguments<Mlp>(fields, what));
    if (op == "pool") return one(t.pool, arguments<Pooling>(fields, what));
    if (op == "global_pool") return one(t.global_pool, arguments<GlobalPool>(fields, what));
    if (op == "attention") return one(t.attention, arguments<Attention>(fields, what));
    if (op == "norm") return one(t.norm, arguments<Norm>(fields, what));
    if (op == "softmax") return one(t.softmax, arguments<Softmax>(fields, what));
    if (op == "eltwise") return one(t.eltwise, arguments<Eltwise>(fields, what));
    if (op == "resize") return one(t.resize, arguments<Resize>(fields, what));
    if (op == "transpose") return one(t.transpose, arguments<Transpose>(fields, what));
    if (op == "matvec") return one(t.matvec, arguments<Matvec>(fields, what));
    throw std::invalid_argument("no kernel " + op);
}

size_t packed_size(const std::string& isa, const std::string& kind, const nb::dict& fields, uintptr_t from) {
    const Kernels& t = kernels(isa);
    if (SparseForm form; sparse_form(kind, form))
        return t.packed_sparse_size(arguments<Weights>(fields, "weights"), form, reinterpret_cast<const void*>(from));
    if (kind == "matvec") return t.packed_matvec_size(arguments<Matvec>(fields, "matvec"));
    const auto w = arguments<Weights>(fields, "weights");
    return kind == "depthwise" ? t.packed_depthwise_size(w) : t.packed_size(w);
}

void pack(const std::string& isa, const std::string& kind, const nb::dict& fields, uintptr_t from,
          uintptr_t scales, uintptr_t to, uintptr_t zeros) {
    const Kernels& t = kernels(isa);
    auto* into = reinterpret_cast<void*>(to);
    if (to % 64 != 0) throw std::invalid_argument("packed weights lie at multiples of 64 bytes");
    if (kind == "matvec")
        return t.pack_matvec(arguments<Matvec>(fields, "matvec"), reinterpret_cast<const int8_t*>(from),
                             {reinterpret_cast<const float*>(scales), reinterpret_cast<const int8_t*>(zeros)},
                             into);
    const auto w = arguments<Weights>(fields, "weights");
    if (SparseForm form; sparse_form(kind, form))
        return t.pack_sparse(w, form, reinterpret_cast<const void*>(from), into);
    (kind == "depthwise" ? t.pack_depthwise : t.pack)(w, reinterpret_cast<const void*>(from), into);
}

}  // namespace

void bind_kernels(nb::module_& m) {
    m.def("kernel_call", &call, "isa"_a, "op"_a, "fields"_a, "parts"_a = 1, "threads"_a = 1,
          "repeats"_a = 1,
          "Run one kernel over all its work, in `parts` pieces, last first; addresses are fields named "
          "'name*'. Returns the shortest time in seconds.");
    m.def("kernel_packed_size", &packed_size, "isa"_a, "kind"_a, "fields"_a, "source"_a = 0,
          "Bytes of packed weights; kind is gemm, conv, depthwise, matvec or one of sparse_single, sparse_quads, "
          "sparse_lanes, sparse_tiles and sparse_masked, whose size depends on the weights at `source`.");
    m.def("kernel_pack", &pack, "isa"_a, "kind"_a, "fields"_a, "source"_a, "scales"_a, "to"_a, "zeros"_a = 0,
          "Pack weights; addresses as integers, `scales` and `zeros` 0 except for matvec.");
}

}  // namespace paredown::engine
