#include "engine.hpp"

#include "copy.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace paredown::engine {
namespace {

constexpr size_t kAlign = 64, kHuge = size_t(2) << 20;
constexpr size_t kMapped = size_t(512) << 10;  // of fewer bytes a huge page would mostly be wasted
// Constants: small networks hold little more than they need, large ones lie in huge pages.
constexpr size_t kFirstBlock = size_t(64) << 10, kLastBlock = size_t(64) << 20;
// Vector loads may run past the last element of a row, never past this.
constexpr size_t kSlack = 64;

template <typename Args>
class Typed final : public Step {
public:
    Typed(const Entry<Args>& entry, Fields& fields) : entry_(entry) { read(fields, args_); }
    int64_t units() const override { return entry_.units(args_); }
    int64_t grain() const override { return entry_.grain == nullptr ? 1 : entry_.grain(args_); }
    size_t scratch() const override { return entry_.scratch == nullptr ? 0 : entry_.scratch(args_); }
    void run(int64_t begin, int64_t end, void* scratch) const override {
        entry_.run(args_, begin, end, scratch);
    }

private:
    const Entry<Args>& entry_;
    Args args_;
};

template <typename Args>
std::unique_ptr<Step> make(const Entry<Args>& entry, Fields& fields, const std::string& op) {
    if (entry.run == nullptr) throw std::invalid_argument("no kernel here for operator " + op);
    return std::make_unique<Typed<Args>>(entry, fields);
}

std::unique_ptr<Step> make(const Kernels& k, const std::string& op, Fields& fields) {
    if (op == "gemm") return make(k.gemm, fields, op);
    if (op == "sparse") return make(k.sparse, fields, op);
    if (op == "conv") return make(k.conv, fields, op);
    if (op == "depthwise") return make(k.depthwise, fields, op);
    if (op == "expand_depthwise") return make(k.expand_depthwise, fields, op);
    if (op == "mlp") return make(k.mlp, fields, op);
    if (op == "pool") return make(k.pool, fields, op);
    if (op == "global_pool") return make(k.global_pool, fields, op);
    if (op == "attention") return make(k.attention, fields, op);
    if (op == "norm") return make(k.norm, fields, op);
    if (op == "softmax") return make(k.softmax, fields, op);
    if (op == "eltwise") return make(k.eltwise, fields, op);
    if (op == "resize") return make(k.resize, fields, op);
    if (op == "transpose") return make(k.transpose, fields, op);
    if (op == "matvec") return make(k.matvec, fields, op);
    if (op == "copy") return make(strided_copy(), fields, op);
    throw std::invalid_argument("no operator " + op);
}

size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

#if defined(__linux__)
// `bytes`, a multiple of kHuge, that lie on its border. Fresh memory of the system is zero.
uint8_t* mapped(size_t bytes) {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* p = mmap(nullptr, bytes + kHuge, PROT_READ | PROT_WRITE, kFlags, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    auto* all = static_cast<uint8_t*>(p);
    const size_t before = (kHuge - reinterpret_cast<uintptr_t>(p) % kHuge) % kHuge;
    if (before != 0) munmap(all, before);
    munmap(all + before + bytes, kHuge - before);
    madvise(all + before, bytes, MADV_HUGEPAGE);
    return all + before;
}
#endif

}  // namespace

void Block::Free::operator()(uint8_t* p) const {
#if defined(__linux__)
    if (mapped != 0) {
        munmap(p, mapped);
        return;
    }
#endif
    std::free(p);
}

Block::Block(size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
#if defined(__linux__)
    if (bytes >= kMapped) {
        const size_t whole = rounded(bytes + kSlack, kHuge);
        data_ = {mapped(whole), Free{whole}};
        return;
    }
#endif
    const size_t whole = rounded(bytes + kSlack, kAlign);
    void* p = nullptr;
    if (posix_memalign(&p, kAlign, whole) != 0) throw std::bad_alloc();
    data_.reset(static_cast<uint8_t*>(p));
    std::memset(p, 0, whole);
}

uint8_t* Constants::add(size_t bytes) {
    const size_t whole = rounded(bytes, kAlign);
    if (blocks_.empty() || blocks_.back().size() - used_ < whole) {
        const size_t next = blocks_.empty() ? kFirstBlock : std::min(blocks_.back().size() * 4, kLastBlock);
        blocks_.emplace_back(std::max(next, whole));
        used_ = 0;
    }
    uint8_t* data = blocks_.back().data() + used_;
    used_ += whole;
    bytes_ += bytes;
    all_.push_back({data, bytes});
    return data;
}

Engine::Engine(const std::string& isa, int threads, size_t arena_bytes, std::vector<size_t> inputs,
               std::vector<size_t> outputs)
    : isa_(isa),
      threads_(threads),
      kernels_(&kernels(isa)),
      arena_(arena_bytes),
      input_bytes_(std::move(inputs)),
      output_bytes_(std::move(outputs)) {
    if (threads < 1 || threads > 1024) throw std::invalid_argument("threads must be 1 to 1024");
}

int64_t Engine::constant(const void* data, size_t bytes) {
    uint8_t* to = constants_.add(bytes);
    if (bytes != 0) std::memcpy(to, data, bytes);
    return int64_t(constants_.count()) - 1;
}

int64_t Engine::weights(const std::string& kind, const Weights& shape, const void* data) {
    if (SparseForm form; sparse_form(kind, form)) {
        if (shape.kh * shape.kw * shape.groups != 1) throw std::invalid_argument("sparse weights are matrices");
        kernels_->pack_sparse(shape, form, data,
                              constants_.add(kernels_->packed_sparse_size(shape, form, data)));
    } else if (kind == "depthwise") {
        kernels_->pack_depthwise(shape, data, constants_.add(kernels_->packed_depthwise_size(shape)));
    } else {
        kernels_->pack(shape, data, constants_.add(kernels_->packed_size(shape)));
    }
    return int64_t(constants_.count()) - 1;
}

int64_t Engine::matvec(const Matvec& shape, const int8_t* q, const Grid& grid) {
    if (kernels_->packed_matvec_size == nullptr) throw std::invalid_argument("no kernel here for matvec");
    kernels_->pack_matvec(shape, q, grid, constants_.add(kernels_->packed_matvec_size(shape)));
    return int64_t(constants_.count()) - 1;
}

const void* Engine::address(const Ref& ref) const {
    switch (ref.space) {
        case Ref::Space::arena:
            if (ref.offset < 0 || size_t(ref.offset) > arena_.size())
                throw std::invalid_argument("a tensor lies outside of the arena");
            return arena_.data() + ref.offset;
        case Ref::Space::constant:
            if (ref.index < 0 || size_t(ref.index) >= constants_.count() || ref.offset < 0 ||
                size_t(ref.offset) > constants_.size(size_t(ref.index)))
                throw std::invalid_argument("a constant that is not there");
            return constants_.data(size_t(ref.index)) + ref.offset;
        case Ref::Space::input:
        case Ref::Space::output: {
            const auto& all = ref.space == Ref::Space::input ? input_bytes_ : output_bytes_;
            if (ref.index < 0 || size_t(ref.index) >= all.size() || ref.offset < 0 ||
                size_t(ref.offset) > all[size_t(ref.index)])
                throw std::invalid_argument("an input or output that is not there");
            return nullptr;
        }
    }
    return nullptr;
}

void Engine::add(const std::string& op, Fields fields) {
    if (finished_) throw std::logic_error("the plan is finished");
    auto step = make(*kernels_, op, fields);
    fields.demand_empty(op);
    for (const Patch& place : fields.places) {
        const void* at = address(place.ref);
        std::memcpy(place.where, &at, sizeof at);
        if (place.ref.space == Ref::Space::input || place.ref.space == Ref::Space::output)
            step->inputs_and_outputs.push_back(place);
    }
    step->cut(threads_);
    const size_t scratch = rounded(step->scratch(), kAlign);
    if (scratch > scratch_each_) scratch_each_ = scratch;
    steps_.push_back(std::move(step));
}

void Engine::finish() {
    // A cache line apart, or two threads would write into one.
    scratch_each_ = rounded(scratch_each_ + kAlign, kAlign);
    scratch_ = Block(scratch_each_ * size_t(threads_));
    finished_ = true;
}

void Engine::point(const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
                   size_t first, size_t last) {
    if (!finished_) throw std::logic_error("the plan is not finished");
    if (inputs.size() != input_bytes_.size() || outputs.size() != output_bytes_.size())
        throw std::invalid_argument("the plan takes other numbers of inputs and outputs");
    if (first > last || last > steps_.size()) throw std::invalid_argument("steps that are not there");
    for (size_t s = first; s < last; ++s)
        for (const Patch& patch : steps_[s]->inputs_and_outputs) {
            const bool in = patch.ref.space == Ref::Space::input;
            const void* base = in ? inputs[size_t(patch.ref.index)] : outputs[size_t(patch.ref.index)];
            const void* at = static_cast<const uint8_t*>(base) + patch.ref.offset;
            std::memcpy(patch.where, &at, sizeof at);
        }
}

void Engine::go(const std::vector<const void*>& inputs, const std::vector<void*>& outputs, size_t first,
                size_t last, double* seconds) {
    std::lock_guard<std::mutex> turn(turn_);
    point(inputs, outputs, first, last);
    // A worker that came late may still be leaving the run before this one.
    if (!run_ || run_.use_count() > 1) run_ = std::make_shared<Run>(steps_.size(), threads_);
    std::atomic_thread_fence(std::memory_order_acquire);
    run_->start(steps_, first, last, scratch_.data(), scratch_each_, seconds);
    if (threads_ == 1)
        run_->work(0);
    else
        Pool::of(threads_)->run(run_);
    for (size_t s = first; s < last; ++s)
        if (steps_[s]->watched()) steps_[s]->cut(threads_);
}

void Engine::run(const std::vector<const void*>& inputs, const std::vector<void*>& outputs, size_t first,
                 size_t last) {
    go(inputs, outputs, first, last, nullptr);
}

void Engine::run_timed(const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
                       size_t first, size_t last, std::vector<double>& seconds) {
    seconds.resize(steps_.size());
    go(inputs, outputs, first, last, seconds.data());
}

std::vector<int64_t> Engine::units() const {
    std::vector<int64_t> out;
    for (const auto& step : steps_) out.push_back(step->units());
    return out;
}

size_t Engine::weight_bytes() const { return constants_.bytes(); }

}  // namespace paredown::engine
