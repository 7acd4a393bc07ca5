#include "pool.hpp"

#include <unistd.h>

#include <chrono>
#include <map>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace paredown::engine {
namespace {

// Long enough to bridge the gap between two calls of a loop, short enough to leave cores to others.
constexpr auto kSpin = std::chrono::microseconds(300);
constexpr int kPauses = 64;
// At a barrier the others are at work: yield only when one of them seems to have lost its core.
constexpr int kBarrierPauses = 20000;

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

}  // namespace

void Barrier::wait(bool& sense) {
    sense = !sense;
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == parties_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        sense_.store(sense, std::memory_order_release);
        return;
    }
    for (int i = 0; sense_.load(std::memory_order_acquire) != sense; ++i) {
        if (i < kBarrierPauses)
            pause();
        else
            std::this_thread::yield();
    }
}

Pool::Pool(int threads) : threads_(threads) {
    workers_.reserve(size_t(threads - 1));
    for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { loop(t); });
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> hold(lock_);
        stop_ = true;
        round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (auto& w : workers_) w.join();
}

void Pool::run(const std::function<void(int)>& work) {
    if (threads_ == 1) {
        work(0);
        return;
    }
    std::lock_guard<std::mutex> turn(turn_);
    work_ = &work;
    busy_.store(threads_ - 1, std::memory_order_relaxed);
    // Sequentially consistent with the sleeper's own two steps: one of both sees the other.
    round_.fetch_add(1);
    if (asleep_.load() > 0) {
        { std::lock_guard<std::mutex> hold(lock_); }
        wake_.notify_all();
    }
    work(0);
    for (int i = 0; busy_.load(std::memory_order_acquire) > 0; ++i) {
        if (i < kBarrierPauses)
            pause();
        else
            std::this_thread::yield();
    }
}

void Pool::loop(int thread) {
    uint64_t seen = 0;
    for (;;) {
        const auto until = std::chrono::steady_clock::now() + kSpin;
        while (round_.load(std::memory_order_acquire) == seen) {
            for (int i = 0; i < kPauses; ++i) pause();
            if (std::chrono::steady_clock::now() < until) continue;
            std::unique_lock<std::mutex> hold(lock_);
            asleep_.fetch_add(1);
            wake_.wait(hold, [&] { return round_.load() != seen; });
            asleep_.fetch_sub(1);
        }
        ++seen;
        if (stop_.load(std::memory_order_acquire)) return;
        (*work_)(thread);
        busy_.fetch_sub(1, std::memory_order_release);
    }
}

std::shared_ptr<Pool> Pool::of(int threads) {
    static std::mutex lock;
    static std::map<int, std::shared_ptr<Pool>>* pools = new std::map<int, std::shared_ptr<Pool>>;
    static pid_t owner = getpid();
    std::lock_guard<std::mutex> hold(lock);
    if (owner != getpid()) {
        // The parent's workers do not exist here: its pools can be neither used nor joined.
        pools = new std::map<int, std::shared_ptr<Pool>>;
        owner = getpid();
    }
    auto& pool = (*pools)[threads];
    if (!pool) pool = std::make_shared<Pool>(threads);
    return pool;
}

}  // namespace paredown::engine
