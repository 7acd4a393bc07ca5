// A persistent pool: the caller and its workers take pieces of one job until none is left.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace paredown::engine {

// Waits until a count that others bring down is zero: spins, then sleeps, so that a core is free for
// the thread that is waited for, should that one have lost its own.
class Countdown {
public:
    void start(int32_t count) { left_.store(count, std::memory_order_relaxed); }
    bool over() const { return left_.load(std::memory_order_acquire) == 0; }
    void done();
    void wait();

private:
    std::atomic<int32_t> left_{0};
    std::atomic<int32_t> asleep_{0};
};

// What threads do together. The caller's own part, `work(0)`, returns when all is done; a worker that
// comes later than that must find nothing left, and touch nothing that the caller may have ended.
class Job {
public:
    virtual ~Job() = default;
    virtual void work(int thread) = 0;  // must not throw
};

// Workers spin for a while after a job, then sleep. One job at a time; others wait their turn.
class Pool {
public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return threads_; }

    // Offers `job` to every worker and does the caller's part as thread 0.
    void run(const std::shared_ptr<Job>& job);

    // The pool of this process for so many threads; made anew after a fork, where threads are lost.
    static std::shared_ptr<Pool> of(int threads);

private:
    void loop(int thread);

    const int threads_;
    std::shared_ptr<Job> job_;  // under lock_
    std::mutex turn_, lock_;
    std::condition_variable wake_;
    alignas(64) std::atomic<uint64_t> round_{0};
    std::atomic<int> asleep_{0};
    std::atomic<bool> stop_{false};
    std::vector<std::thread> workers_;
};

}  // namespace paredown::engine
