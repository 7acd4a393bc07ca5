// Steps in pieces, and one run of them by all threads.
#pragma once
#include <atomic>
#include <memory>
#include <vector>

#include "fields.hpp"
#include "pool.hpp"

namespace paredown::engine {

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
    // Whether the time of a unit is still looked for, to cut by it.
    bool watched() const { return bounds_.size() > 1 && cuts_ <= kWatchedRuns; }
    int32_t pieces(int range) const { return int32_t(bounds_[size_t(range)].size()) - 1; }
    // The piece of `range` behind which `behind` others lie.
    void run_piece(int range, int32_t behind, void* scratch) const;

    std::vector<Patch> inputs_and_outputs;

private:
    static constexpr int kWatchedRuns = 4;
    void timed(int64_t units, double seconds) const;

    std::vector<std::vector<int64_t>> bounds_;  // of the pieces of each range
    int cuts_ = 0;
    mutable std::atomic<float> unit_seconds_{0};  // the least seen
};

using Steps = std::vector<std::unique_ptr<Step>>;

// One run of some steps by all threads. Everyone passes from a step to the next when its last piece is
// done, so nobody waits for a thread that has none in hand.
class Run final : public Job {
public:
    Run(size_t steps, int threads);
    // Ready for steps [first, last) of `steps`, thread t with the scratch area at `scratch` + t * `each`.
    // Both must stay until `work(0)` returns. Adds the seconds of each step to `seconds`, if not null.
    void start(const Steps& steps, size_t first, size_t last, uint8_t* scratch, size_t each, double* seconds);
    void work(int thread) override;

private:
    // The pieces of one range that nobody took yet; below zero when more was asked for.
    struct alignas(64) Left {
        std::atomic<int32_t> pieces{0};
    };
    struct alignas(64) State {
        Countdown undone;
    };
    Left& left(size_t step, int range) { return left_[step * size_t(threads_) + size_t(range)]; }
    bool take(size_t step, int range, int thread);

    const int threads_;
    const Steps* steps_ = nullptr;
    size_t first_ = 0, last_ = 0;
    uint8_t* scratch_ = nullptr;
    size_t scratch_each_ = 0;
    double* seconds_ = nullptr;
    std::vector<Left> left_;  // [step][range]
    std::vector<State> states_;
};

}  // namespace paredown::engine
