// Arrays come through DLPack or the buffer protocol and are checked against the plan's sizes; no torch.
#include "bind_engine.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "engine.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace paredown::engine {
namespace {

using Array = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Writable = nb::ndarray<nb::c_contig, nb::device::cpu>;

Ref ref_of(const nb::tuple& t) {
    if (t.size() != 3) throw std::invalid_argument("a place is (space, index, offset)");
    const auto space = nb::cast<std::string>(t[0]);
    Ref ref;
    if (space == "arena") ref.space = Ref::Space::arena;
    else if (space == "constant") ref.space = Ref::Space::constant;
    else if (space == "input") ref.space = Ref::Space::input;
    else if (space == "output") ref.space = Ref::Space::output;
    else throw std::invalid_argument("no space " + space);
    ref.index = nb::cast<int64_t>(t[1]);
    ref.offset = nb::cast<int64_t>(t[2]);
    return ref;
}

Fields fields_of(const nb::dict& given) {
    Fields out;
    for (const auto& [key, value] : given) {
        const auto name = nb::cast<std::string>(key);
        if (nb::isinstance<nb::tuple>(value)) out.refs[name] = ref_of(nb::cast<nb::tuple>(value));
        else if (nb::isinstance<nb::str>(value)) out.words[name] = nb::cast<std::string>(value);
        else out.numbers[name] = nb::cast<double>(value);
    }
    return out;
}

// A value for each element of the shape is there.
void demand_bytes(const Array& data, size_t wanted, const char* what) {
    if (data.nbytes() != wanted)
        throw std::invalid_argument(std::string(what) + " holds " + std::to_string(data.nbytes()) +
                                    " bytes, " + std::to_string(wanted) + " are needed");
}

int64_t add_constant(Engine& e, const Array& data) { return e.constant(data.data(), data.nbytes()); }

int64_t add_weights(Engine& e, const std::string& kind, const nb::dict& shape, const Array& data) {
    Fields f = fields_of(shape);
    Weights w;
    read(f, w);
    f.demand_empty("weights");
    if (w.out < 1 || w.in < 1 || w.kh < 1 || w.kw < 1 || w.groups < 1 || w.in % w.groups != 0)
        throw std::invalid_argument("weights of an impossible shape");
    // bfloat16 weights come as float32.
    const size_t each = w.type == DType::s8 ? 1 : 4;
    demand_bytes(data, size_t(w.out * (w.in / w.groups) * w.kh * w.kw) * each, "a weight");
    return e.weights(kind, w, data.data());
}

int64_t add_matvec(Engine& e, const nb::dict& shape, const Array& q, const Array& scales, const Array& zeros) {
    Fields f = fields_of(shape);
    Matvec w;
    read(f, w);
    f.demand_empty("matvec");
    if (w.n < 1 || w.k < 1 || w.group < 1) throw std::invalid_argument("weights of an impossible shape");
    demand_bytes(q, size_t(w.n * w.k), "a weight");
    const auto grid = size_t(w.n * ((w.k + w.group - 1) / w.group));
    demand_bytes(scales, grid * 4, "its scales");
    demand_bytes(zeros, grid, "its zero points");
    return e.matvec(w, static_cast<const int8_t*>(q.data()),
                    {static_cast<const float*>(scales.data()), static_cast<const int8_t*>(zeros.data())});
}

struct Pointers {
    std::vector<const void*> inputs;
    std::vector<void*> outputs;
};

Pointers pointers(const Engine& e, const std::vector<Array>& inputs, const std::vector<Writable>& outputs) {
    if (inputs.size() != e.input_bytes().size() || outputs.size() != e.output_bytes().size())
        throw std::invalid_argument("the plan takes other numbers of inputs and outputs");
    Pointers out;
    for (size_t i = 0; i < inputs.size(); ++i) {
        demand_bytes(inputs[i], e.input_bytes()[i], "an input");
        out.inputs.push_back(inputs[i].data());
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
        if (outputs[i].nbytes() != e.output_bytes()[i])
            throw std::invalid_argument("an output of another size than the plan's");
        out.outputs.push_back(outputs[i].data());
    }
    return out;
}

void run(Engine& e, const std::vector<Array>& inputs, const std::vector<Writable>& outputs, size_t first,
         size_t last) {
    const Pointers p = pointers(e, inputs, outputs);
    nb::gil_scoped_release release;
    e.run(p.inputs, p.outputs, first, last);
}

std::vector<double> run_timed(Engine& e, const std::vector<Array>& inputs,
                              const std::vector<Writable>& outputs, size_t first, size_t last) {
    const Pointers p = pointers(e, inputs, outputs);
    std::vector<double> seconds(e.steps(), 0.0);
    nb::gil_scoped_release release;
    e.run_timed(p.inputs, p.outputs, first, last, seconds);
    return seconds;
}

nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>> arena(nb::handle_t<Engine> self) {
    Engine& e = nb::cast<Engine&>(self);
    const size_t shape[1] = {e.arena_bytes()};
    return nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(e.arena(), 1, shape, self);
}

}  // namespace

void bind_engine(nb::module_& m) {
    nb::class_<Engine>(m, "Engine", "A plan made ready to run: packed weights, one arena, steps.")
        .def(nb::init<const std::string&, int, size_t, std::vector<size_t>, std::vector<size_t>>(), "isa"_a,
             "threads"_a, "arena_bytes"_a, "input_bytes"_a, "output_bytes"_a)
        .def("constant", &add_constant, "data"_a, "Copy an array; returns its index.")
        .def("weights", &add_weights, "kind"_a, "shape"_a, "data"_a,
             "Pack weights ('dense' or 'depthwise') for this instruction set; returns their index.")
        .def("matvec", &add_matvec, "shape"_a, "q"_a, "scales"_a, "zeros"_a,
             "Pack weight-only quantized weights: scale (q - zero), bytes but for the scales.")
        .def("add", [](Engine& e, const std::string& op, const nb::dict& f) { e.add(op, fields_of(f)); },
             "op"_a, "fields"_a, "Append an operator; fields are those of kernels.hpp by name.")
        .def("finish", &Engine::finish, "No more steps: make the scratch areas.")
        .def("run", &run, "inputs"_a, "outputs"_a, "first"_a, "last"_a, "Run steps [first, last).")
        .def("run_timed", &run_timed, "inputs"_a, "outputs"_a, "first"_a, "last"_a,
             "Run steps [first, last); seconds of each step.")
        .def_prop_ro("isa", &Engine::isa)
        .def_prop_ro("threads", &Engine::threads)
        .def_prop_ro("steps", &Engine::steps)
        .def_prop_ro("units", &Engine::units, "Parts that each step may be cut into.")
        .def_prop_ro("weight_bytes", &Engine::weight_bytes)
        .def_prop_ro("arena_bytes", &Engine::arena_bytes)
        .def_prop_ro("scratch_bytes", &Engine::scratch_bytes)
        .def_prop_ro("arena", &arena, "The arena as a uint8 array over its memory.");
}

}  // namespace paredown::engine
