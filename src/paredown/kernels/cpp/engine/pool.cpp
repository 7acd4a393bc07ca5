#include "pool.hpp"

#include <unistd.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

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
// Others are at work: some 50 us, more than an even split leaves, and one of them has lost its core.
constexpr int kCountdownPauses = 1000;

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

}  // namespace

// Both sides first write, then read what the other writes, in one total order: one of them sees it.
void Countdown::done() {
    if (left_.fetch_sub(1) != 1 || asleep_.load() == 0) return;
#if defined(__linux__)
    syscall(SYS_futex, &left_, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#endif
}

void Countdown::wait() {
    for (int i = 0; i < kCountdownPauses; ++i) {
        if (over()) return;
        pause();
    }
    asleep_.fetch_add(1);
    for (int32_t now = left_.load(); now != 0; now = left_.load()) {
#if defined(__linux__)
        syscall(SYS_futex, &left_, FUTEX_WAIT_PRIVATE, now, nullptr, nullptr, 0);
#else
        std::this_thread::yield();
#endif
    }
    asleep_.fetch_sub(1);
}

Pool::Pool(int threads) : threads_(threads) {
    workers_.reserve(size_t(threads - 1));
    for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { loop(t); });
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> hold(lock_);
        stop_ = true;
        round_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& w : workers_) w.join();
}

void Pool::run(const std::shared_ptr<Job>& job) {
    std::lock_guard<std::mutex> turn(turn_);
    {
        std::lock_guard<std::mutex> hold(lock_);
        job_ = job;
        round_.fetch_add(1);
    }
    // Who goes to sleep counts itself under the lock first: it has seen the round, or is woken.
    if (asleep_.load() > 0) wake_.notify_all();
    job->work(0);
    std::lock_guard<std::mutex> hold(lock_);
    job_.reset();
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
        std::shared_ptr<Job> job;
        {
            std::lock_guard<std::mutex> hold(lock_);
            seen = round_.load();
            job = job_;
        }
        if (stop_.load(std::memory_order_acquire)) return;
        if (job) job->work(thread);
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
