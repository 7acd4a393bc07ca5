// The Python face of the native probes. Arrays come through the buffer protocol or DLPack; no torch.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "cpu.hpp"
#include "engine/bind_engine.hpp"
#include "engine/kernels_bind.hpp"
#include "probe.hpp"
#include "signs/bind_signs.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <typename T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <typename A, typename B>
void same_length(const A& a, const B& b) {
    if (a.shape(0) != b.shape(0))
        throw std::invalid_argument("vectors of one length are needed, got " + std::to_string(a.shape(0)) +
                                    " and " + std::to_string(b.shape(0)));
}

nb::dict as_dict(const paredown::Rate& rate) {
    nb::dict d;
    d["best"] = rate.best;
    d["median"] = rate.median;
    d["rounds"] = rate.rounds;
    return d;
}

paredown::PeakFn probe_of(const paredown::Table& t, const std::string& dtype) {
    if (dtype == "float32") return t.peak_f32;
    if (dtype == "float64") return t.peak_f64;
    if (dtype == "bfloat16") return t.peak_bf16;
    if (dtype == "float16") return t.peak_f16;
    if (dtype == "int8") return t.peak_i8;
    if (dtype == "elementwise") return t.elementwise;
    throw std::invalid_argument("no probe for dtype '" + dtype + "'");
}

nb::object peak(const std::string& dtype, const std::string& isa, const std::vector<int>& cpus,
                double seconds) {
    const paredown::PeakFn run = probe_of(paredown::table(isa), dtype);
    if (run == nullptr) return nb::none();
    paredown::Rate rate;
    {
        nb::gil_scoped_release release;
        rate = paredown::peak_rate(run, cpus, seconds);
    }
    return as_dict(rate);
}

nb::dict bandwidth(const std::string& kind, size_t bytes, const std::string& isa,
                   const std::vector<int>& cpus, double seconds) {
    const paredown::Table& t = paredown::table(isa);
    paredown::Rate rate;
    {
        nb::gil_scoped_release release;
        rate = paredown::bandwidth(t, kind, bytes, cpus, seconds);
    }
    return as_dict(rate);
}

float dot_f32(Vector<float> a, Vector<float> b, const std::string& isa) {
    same_length(a, b);
    return paredown::table(isa).dot_f32(a.data(), b.data(), a.shape(0));
}

float dot_bf16(Vector<uint16_t> a, Vector<uint16_t> b, const std::string& isa) {
    same_length(a, b);
    return paredown::table(isa).dot_bf16(a.data(), b.data(), a.shape(0));
}

int32_t dot_i8(Vector<uint8_t> a, Vector<int8_t> b, const std::string& isa) {
    same_length(a, b);
    return paredown::table(isa).dot_i8(a.data(), b.data(), a.shape(0));
}

uint64_t read_sum(Vector<uint8_t> data, const std::string& isa) {
    return paredown::table(isa).read(data.data(), data.shape(0));
}

void fill(nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> data, uint8_t value,
          const std::string& isa) {
    paredown::table(isa).write(data.data(), data.shape(0), value);
}

void copy(nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> to, Vector<uint8_t> from,
          const std::string& isa) {
    same_length(to, from);
    paredown::table(isa).copy(to.data(), from.data(), from.shape(0));
}

using Tile = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void tile_i8(Matrix<int8_t> a, Matrix<int8_t> b, Tile out, const std::string& isa) {
    const size_t m = a.shape(0), k = a.shape(1), n = b.shape(1);
    if (b.shape(0) != k || out.shape(0) != m || out.shape(1) != n)
        throw std::invalid_argument("a (m, k), b (k, n) and out (m, n) do not fit together");
    if (m < 1 || m > 16 || n < 1 || n > 16 || k < 1 || k > 64)
        throw std::invalid_argument("one tile holds m, n in 1..16 and k in 1..64");
    paredown::table(isa).tile_i8(a.data(), b.data(), out.data(), int(m), int(n), int(k));
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Native probes of paredown: features, peak rates, bandwidth, and their reference arithmetic.";
    m.def("features", &paredown::features, "Instruction-set features usable here.");
    m.def("levels", &paredown::levels, "Usable instruction-set levels, scalar first.");
    m.def("peak", &peak, "dtype"_a, "isa"_a, "cpus"_a, "seconds"_a,
          "MAC/s (for 'elementwise': operations/s) as {best, median, rounds}; None without such a unit.");
    m.def("bandwidth", &bandwidth, "kind"_a, "bytes"_a, "isa"_a, "cpus"_a, "seconds"_a,
          "B/s of read, write or copy over a working set as {best, median, rounds}.");
    m.def("dot_f32", &dot_f32, "a"_a, "b"_a, "isa"_a, "Dot product of float32 vectors.");
    m.def("dot_bf16", &dot_bf16, "a"_a, "b"_a, "isa"_a, "Dot product of bfloat16 bit patterns (uint16).");
    m.def("dot_i8", &dot_i8, "a"_a, "b"_a, "isa"_a,
          "Dot product of uint8 and int8 vectors, exact up to 65,792 elements (int32).");
    m.def("read_sum", &read_sum, "data"_a, "isa"_a,
          "Sum of the 64-bit words of a byte vector, zero-padded, modulo 2**64.");
    m.def("fill", &fill, "data"_a, "value"_a, "isa"_a, "Set every byte of a vector.");
    m.def("copy", &copy, "to"_a, "from_"_a, "isa"_a, "Copy a byte vector into another of its length.");
    m.def("tile_i8", &tile_i8, "a"_a, "b"_a, "out"_a, "isa"_a,
          "One int8 tile product: out (m, n) = a (m, k) b (k, n), exact.");
    paredown::engine::bind_engine(m);
    paredown::engine::bind_kernels(m);
    paredown::signs::bind_signs(m);
}
