// The Python face of products of signs: arrays through DLPack, checked before anything runs.
#include "bind_signs.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "signs.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace paredown::signs {
namespace {

template <typename T>
using Vector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Scale = std::optional<Vector<const float>>;

constexpr int64_t kMost = 65535;  // sums in slices: what the widest level turns into integers

int64_t rows_of(const Matrix<const int64_t>& m) { return static_cast<int64_t>(m.shape(0)); }
int64_t columns_of(const Matrix<const int64_t>& m) { return static_cast<int64_t>(m.shape(1)); }

const uint64_t* words_of(const Matrix<const int64_t>& m) { return reinterpret_cast<const uint64_t*>(m.data()); }

void demand(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

// The plan of a tree, checked once: parents stand before their children, lists lie within the inputs.
class Plan {
public:
    Plan(Matrix<const int32_t> steps, Vector<const int32_t> lists, int64_t words, int32_t n)
        : lists_(lists.data(), lists.data() + lists.shape(0)), words_(words), n_(n) {
        demand(steps.shape(1) == 7, "a step has seven numbers");
        demand(words >= 1 && n >= 1 && n <= words * 64 && n <= kMost, "a plan takes 1 to 65535 signs, as many as its words hold");
        const auto count = static_cast<int64_t>(steps.shape(0));
        std::vector<bool> done(static_cast<size_t>(count));
        for (int64_t i = 0; i < count; ++i) {
            const int32_t* s = steps.data() + 7 * i;
            const Step step{s[0], s[1], s[2], s[3], s[4], s[5], s[6]};
            demand(step.channel >= 0 && step.channel < count && !done[static_cast<size_t>(step.channel)],
                   "a plan names each channel once");
            demand(step.parent >= -1 && step.parent < count &&
                       (step.parent < 0 || done[static_cast<size_t>(step.parent)]),
                   "a parent stands before its children");
            const int64_t end = static_cast<int64_t>(step.list) + step.plus + step.minus;
            demand(step.plus >= 0 && step.minus >= 0 && step.list >= 0 && step.plus % kList == 0 &&
                       step.minus % kList == 0 && end <= static_cast<int64_t>(lists_.size()),
                   "lists come in eights and lie within those given");
            demand(step.differs >= 0 && step.differs <= step.plus + step.minus && step.differs <= n && step.behind >= 0,
                   "a step counts its inputs");
            done[static_cast<size_t>(step.channel)] = true;
            steps_.push_back(step);
        }
        for (const int32_t i : lists_) demand(i >= 0 && i < words * 64 + 2, "a list names inputs");
    }

    Along args(const Matrix<const int64_t>& a) const {
        demand(columns_of(a) == words_, "rows have the words that the plan was made for");
        Along p;
        p.a = words_of(a);
        p.steps = steps_.data();
        p.lists = lists_.data();
        p.rows = rows_of(a);
        p.channels = static_cast<int64_t>(steps_.size());
        p.words = words_;
        p.n = n_;
        return p;
    }

private:
    std::vector<Step> steps_;
    std::vector<int32_t> lists_;
    int64_t words_;
    int32_t n_;
};

struct Free {
    void operator()(char* p) const { std::free(p); }
};
using Area = std::unique_ptr<char, Free>;

Area area(size_t bytes) {
    Area found(static_cast<char*>(std::aligned_alloc(64, (bytes / 64 + 1) * 64)));
    if (found == nullptr) throw std::bad_alloc();
    return found;
}

template <typename Args>
void run(const Entry<Args>& entry, const Args& args, int threads) {
    const int64_t units = entry.units(args);
    demand(threads >= 1, "at least one thread");
    if (units < threads) threads = static_cast<int>(units);
    std::vector<Area> areas;
    for (int i = 0; i < threads; ++i) areas.push_back(area(entry.scratch(args)));
    const auto part = [&](int i) {
        entry.run(args, units * i / threads, units * (i + 1) / threads, areas[static_cast<size_t>(i)].get());
    };
    nb::gil_scoped_release release;
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(part, i);
    if (threads > 0) part(0);
    for (auto& t : others) t.join();
}

// Where sums go; `data` is int32 without a scale and float32 with one, `channels` long each.
Out out_of(nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu> data, int64_t first, int64_t second,
           const Scale& gain, const Scale& offset, int64_t channels) {
    demand(static_cast<int64_t>(data.shape(0)) == first && static_cast<int64_t>(data.shape(1)) == second,
           "the place for results has another shape");
    demand(gain.has_value() == offset.has_value(), "gain and offset come together");
    Out out;
    if (!gain.has_value()) {
        demand(data.dtype() == nb::dtype<int32_t>(), "sums are int32");
        out.sums = static_cast<int32_t*>(data.data());
        return out;
    }
    demand(data.dtype() == nb::dtype<float>(), "scaled sums are float32");
    demand(static_cast<int64_t>(gain->shape(0)) == channels && static_cast<int64_t>(offset->shape(0)) == channels,
           "a gain and an offset for each channel");
    out.scaled = static_cast<float*>(data.data());
    out.gain = gain->data();
    out.offset = offset->data();
    return out;
}

using Any = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void pack(Matrix<const float> x, Vector<const float> threshold, Matrix<int64_t> out, const std::string& isa) {
    const auto rows = static_cast<int64_t>(x.shape(0)), n = static_cast<int64_t>(x.shape(1));
    demand(static_cast<int64_t>(threshold.shape(0)) == n, "a threshold for each column");
    demand(static_cast<int64_t>(out.shape(0)) == rows && static_cast<int64_t>(out.shape(1)) == (n + 63) / 64,
           "the place for words has another shape");
    const Kernels& t = kernels(isa);
    nb::gil_scoped_release release;
    t.pack(x.data(), rows, n, threshold.data(), reinterpret_cast<uint64_t*>(out.data()));
}

void product(Matrix<const int64_t> a, Matrix<const int64_t> w, int32_t n, Any out, const Scale& gain,
             const Scale& offset, const std::string& isa, int threads) {
    demand(columns_of(a) == columns_of(w) && n >= 1 && n <= columns_of(a) * 64,
           "rows and channels have the same words, which hold the signs");
    Product p;
    p.a = words_of(a);
    p.w = words_of(w);
    p.rows = rows_of(a);
    p.channels = rows_of(w);
    p.words = columns_of(a);
    p.n = n;
    p.out = out_of(out, p.rows, p.channels, gain, offset, p.channels);
    run(kernels(isa).product, p, threads);
}

void along(const Plan& plan, Matrix<const int64_t> a, Any out, const Scale& gain, const Scale& offset,
           const std::string& isa, bool gathers, int threads) {
    Along p = plan.args(a);
    p.out = out_of(out, p.channels, p.rows, gain, offset, p.channels);
    const Kernels& t = kernels(isa);
    run(gathers ? t.gathers : t.sliced, p, threads);
}

}  // namespace

void bind_signs(nb::module_& m) {
    nb::class_<Plan>(m, "SignsPlan", "Channels made of one another along a tree, checked.")
        .def(nb::init<Matrix<const int32_t>, Vector<const int32_t>, int64_t, int32_t>(), "steps"_a, "lists"_a,
             "words"_a, "n"_a);
    m.def("signs_pack", &pack, "x"_a, "threshold"_a, "out"_a, "isa"_a,
          "Signs of x (rows, n) as words (rows, ceil(n / 64)): a bit is set where x < threshold.");
    m.def("signs_product", &product, "a"_a, "w"_a, "n"_a, "out"_a, "gain"_a.none(), "offset"_a.none(), "isa"_a,
          "threads"_a, "n - 2 popcount(a xor w), (rows, channels): int32, or float32 gain * sum + offset.");
    m.def("signs_along", &along, "plan"_a, "a"_a, "out"_a, "gain"_a.none(), "offset"_a.none(), "isa"_a,
          "gathers"_a, "threads"_a,
          "The same along a plan, (channels, rows): by slices of counts, or input by input with `gathers`.");
}

}  // namespace paredown::signs
