// A plan as C++ holds it: constants, one arena, and steps that a pool of threads walks through.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "fields.hpp"
#include "kernels.hpp"
#include "pool.hpp"

namespace paredown::engine {

// Memory of 64-byte alignment, in huge pages where the system gives them.
class Block {
public:
    explicit Block(size_t bytes = 0);
    uint8_t* data() const { return data_.get(); }
    size_t size() const { return size_; }

private:
    struct Free {
        void operator()(uint8_t* p) const;
    };
    std::unique_ptr<uint8_t, Free> data_;
    size_t size_ = 0;
};

// A step's units lie in one range for each thread, each range in pieces. A thread takes the pieces of
// its own range first, as the same thread then reads what it wrote in the step before, then the others'.
class Step {
public:
    virtual ~Step() = default;
    virtual int64_t units() const = 0;
    virtual int64_t grain() const = 0;
    virtual size_t scratch() const = 0;
    virtual void run(int64_t begin, int64_t end, void* scratch) const = 0;

    // Cuts every range into pieces that are worth taking one by one, as far as the time of a unit is known.
    void cut(int threads);
    void timed(int64_t units, double seconds) const;
    int64_t pieces(int range) const { return int64_t(bounds[size_t(range)].size()) - 1; }

    std::vector<Patch> inputs_and_outputs;
    std::vector<std::vector<int64_t>> bounds;  // of the pieces of each range

private:
    mutable std::atomic<float> unit_seconds_{0};  // the least seen
};

class Engine;

// One run of some steps by all threads. Everyone passes from a step to the next when its last piece is
// done, so nobody waits for a thread that has none in hand.
class Run final : public Job {
public:
    Run(size_t steps, int threads);
    // Ready for steps [first, last) of `engine`, which must stay until `work(0)` returns.
    void start(const Engine& engine, size_t first, size_t last, double* seconds, bool watch);
    void work(int thread) override;

private:
    // The pieces of one range that nobody took yet; below zero when more was asked for.
    struct alignas(64) Left {
        std::atomic<int32_t> pieces{0};
    };
    struct alignas(64) State {
        Countdown undone;
    };
    bool take(const Engine& engine, size_t step, int range, int thread);

    const int threads_;
    const Engine* engine_ = nullptr;
    size_t first_ = 0, last_ = 0;
    double* seconds_ = nullptr;
    bool watch_ = false;
    std::vector<Left> left_;  // [step][range]
    std::vector<State> states_;
};

class Engine {
public:
    Engine(const std::string& isa, int threads, size_t arena_bytes, std::vector<size_t> inputs,
           std::vector<size_t> outputs);

    // Constants are copied, weights packed for this instruction set. Both return an index for Ref.
    int64_t constant(const void* data, size_t bytes);
    int64_t weights(const std::string& kind, const Weights& shape, const void* data);
    int64_t matvec(const Matvec& shape, const int8_t* q, const float* scales);

    // Adds an operator; throws std::invalid_argument for an unknown one, an unknown field or a place
    // outside of the arena.
    void add(const std::string& op, Fields fields);
    void finish();

    // Steps [first, last). One run at a time; pointers are those of whole contiguous tensors.
    void run(const std::vector<const void*>& inputs, const std::vector<void*>& outputs, size_t first,
             size_t last);

    // As run, with the seconds of each step added to `seconds`.
    void run_timed(const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
                   size_t first, size_t last, std::vector<double>& seconds);

    const std::string& isa() const { return isa_; }
    int threads() const { return threads_; }
    size_t steps() const { return steps_.size(); }
    std::vector<int64_t> units() const;  // how many parts each step may be cut into
    size_t weight_bytes() const;
    size_t arena_bytes() const { return arena_.size(); }
    size_t scratch_bytes() const { return scratch_.size(); }
    uint8_t* arena() const { return arena_.data(); }
    const std::vector<size_t>& input_bytes() const { return input_bytes_; }
    const std::vector<size_t>& output_bytes() const { return output_bytes_; }

private:
    const void* address(const Ref& ref) const;
    void go(const std::vector<const void*>& inputs, const std::vector<void*>& outputs, size_t first,
            size_t last, double* seconds);
    friend class Run;
    void point(const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
               size_t first, size_t last);

    std::string isa_;
    int threads_;
    const Kernels* kernels_;
    Block arena_, scratch_;
    size_t scratch_each_ = 0;
    std::vector<Block> constants_;
    std::vector<size_t> input_bytes_, output_bytes_;
    std::vector<std::unique_ptr<Step>> steps_;
    std::shared_ptr<Run> run_;
    int watched_ = 0;  // runs in which the steps were timed to cut them
    std::mutex turn_;
    bool finished_ = false;
};

}  // namespace paredown::engine
