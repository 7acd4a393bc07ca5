// A persistent pool: the caller and its workers run one function together, meeting at barriers.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace paredown::engine {

// All threads of a run pass it together. Sense-reversing; waits by spinning, then by yielding.
class Barrier {
public:
    explicit Barrier(int parties) : parties_(parties) {}
    void wait(bool& sense);

private:
    const int parties_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<bool> sense_{false};
};

// Workers spin for a while after a run, then sleep. One run at a time; others wait their turn.
class Pool {
public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return threads_; }

    // Runs `work(thread)` on every thread, the caller as thread 0, and returns when all are done.
    // `work` must not throw.
    void run(const std::function<void(int)>& work);

    // The pool of this process for so many threads; made anew after a fork, where threads are lost.
    static std::shared_ptr<Pool> of(int threads);

private:
    void loop(int thread);

    const int threads_;
    const std::function<void(int)>* work_ = nullptr;
    std::mutex turn_, lock_;
    std::condition_variable wake_;
    alignas(64) std::atomic<uint64_t> round_{0};
    alignas(64) std::atomic<int> busy_{0};
    std::atomic<int> asleep_{0};
    std::atomic<bool> stop_{false};
    std::vector<std::thread> workers_;
};

}  // namespace paredown::engine
