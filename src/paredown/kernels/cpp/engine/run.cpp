#include "run.hpp"

#include <chrono>

namespace paredown::engine {
namespace {

using Clock = std::chrono::steady_clock;

// What taking a piece costs is a fraction of a microsecond, the setting up of its kernel included.
constexpr double kPieceSeconds = 8e-6;
constexpr int kPieces = 4;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

void Step::cut(int threads) {
    const int64_t all = units(), each = grain();
    const double unit = double(unit_seconds_.load(std::memory_order_relaxed));
    ++cuts_;
    bounds_.assign(size_t(threads), {});
    for (int t = 0; t < threads; ++t) {
        auto& cuts = bounds_[size_t(t)];
        int64_t at = all * t / threads;
        const int64_t end = all * (t + 1) / threads;
        cuts.push_back(at);
        // A half, a quarter, and so on: large pieces first, small ones to end together.
        const double pieces = double(end - at) * unit / kPieceSeconds;
        for (int i = 1; i < kPieces && i + 1 <= pieces; ++i) {
            const int64_t next = ((at + end) / 2 + each - 1) / each * each;
            if (next <= at || next >= end) break;
            cuts.push_back(at = next);
        }
        if (at < end) cuts.push_back(end);
    }
}

void Step::run_piece(int range, int32_t behind, void* scratch) const {
    const auto& cuts = bounds_[size_t(range)];
    const size_t at = cuts.size() - 2 - size_t(behind);
    if (!watched()) return run(cuts[at], cuts[at + 1], scratch);
    const auto start = Clock::now();
    run(cuts[at], cuts[at + 1], scratch);
    timed(cuts[at + 1] - cuts[at], seconds_since(start));
}

void Step::timed(int64_t units, double seconds) const {
    const auto each = float(seconds / double(units));
    const float least = unit_seconds_.load(std::memory_order_relaxed);
    if (least == 0 || each < least) unit_seconds_.store(each, std::memory_order_relaxed);
}

Run::Run(size_t steps, int threads) : threads_(threads), left_(steps * size_t(threads)), states_(steps) {}

void Run::start(const Steps& steps, size_t first, size_t last, uint8_t* scratch, size_t each, double* seconds) {
    steps_ = &steps;
    first_ = first;
    last_ = last;
    scratch_ = scratch;
    scratch_each_ = each;
    seconds_ = seconds;
    for (size_t s = first; s < last; ++s) {
        int32_t total = 0;
        for (int t = 0; t < threads_; ++t) {
            const int32_t pieces = steps[s]->pieces(t);
            left(s, t).pieces.store(pieces, std::memory_order_relaxed);
            total += pieces;
        }
        states_[s].undone.start(total);
    }
}

// Takes one piece and does it; steps and scratch areas are touched only once a piece is had.
bool Run::take(size_t step, int range, int thread) {
    auto& pieces = left(step, range).pieces;
    if (pieces.load(std::memory_order_relaxed) <= 0) return false;
    const int32_t had = pieces.fetch_sub(1, std::memory_order_acquire);
    if (had <= 0) return false;
    (*steps_)[step]->run_piece(range, had - 1, scratch_ + scratch_each_ * size_t(thread));
    states_[step].undone.done();
    return true;
}

void Run::work(int thread) {
    const bool clocked = thread == 0 && seconds_ != nullptr;
    for (size_t s = first_; s < last_; ++s) {
        const auto start = clocked ? Clock::now() : Clock::time_point();
        Countdown& undone = states_[s].undone;
        for (int i = 0; i < threads_ && !undone.over(); ++i)
            while (take(s, (thread + i) % threads_, thread)) continue;
        undone.wait();
        if (clocked) seconds_[s] += seconds_since(start);
    }
}

}  // namespace paredown::engine
