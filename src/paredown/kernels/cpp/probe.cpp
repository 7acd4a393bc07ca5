// Timed probes: pinned threads start together; the best of several short rounds is the figure.
#include "probe.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <thread>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace paredown {
namespace {

using Clock = std::chrono::steady_clock;
constexpr double kRoundSeconds = 0.02;

double since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

void pin(int cpu) {
#ifdef __linux__
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<size_t>(cpu), &set);
    // A refusal leaves the thread where the system puts it: the figure is then lower, never wrong.
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
#else
    (void)cpu;
#endif
}

// Runs `work(thread, times)` on all threads at once, round after round, for about `seconds`.
// `work` returns the units done and adds to its sink.
Rate timed(const std::vector<int>& cpus, double seconds,
           const std::function<double(int thread, uint64_t times, double* sink)>& work) {
    const int n = static_cast<int>(cpus.size());
    if (n == 0) throw std::invalid_argument("a probe needs at least one core");
    std::atomic<int> arrived{0}, finished{0};
    std::atomic<int> round{0};
    std::atomic<bool> stop{false};
    std::atomic<uint64_t> times{1};
    std::vector<double> units(static_cast<size_t>(n)), sinks(static_cast<size_t>(n));
    std::vector<std::thread> threads;
    for (int i = 0; i < n; ++i)
        threads.emplace_back([&, i] {
            pin(cpus[static_cast<size_t>(i)]);
            int seen = 0;
            double sink = 0;
            arrived.fetch_add(1);
            for (;;) {
                // Yielding keeps the coordinator, which shares a core with a worker, alive.
                while (round.load(std::memory_order_acquire) == seen) std::this_thread::yield();
                ++seen;
                if (stop.load()) break;
                units[static_cast<size_t>(i)] = work(i, times.load(), &sink);
                finished.fetch_add(1, std::memory_order_release);
            }
            sinks[static_cast<size_t>(i)] = sink;
        });
    while (arrived.load() < n) std::this_thread::yield();

    const auto one_round = [&] {
        finished.store(0);
        const auto start = Clock::now();
        round.fetch_add(1, std::memory_order_release);
        while (finished.load(std::memory_order_acquire) < n)
            std::this_thread::sleep_for(std::chrono::microseconds(50));
        return since(start);
    };
    double took = one_round();  // warms caches, pages and clocks
    while ((took = one_round()) < kRoundSeconds) {
        const double factor = took > 1e-6 ? kRoundSeconds * 1.2 / took : 1024.0;
        times.store(std::max<uint64_t>(times.load() + 1,
                                       static_cast<uint64_t>(static_cast<double>(times.load()) *
                                                             std::min(factor, 1024.0))));
    }
    std::vector<double> rates;
    const auto begin = Clock::now();
    do {
        const double elapsed = one_round();
        double total = 0;
        for (double u : units) total += u;
        rates.push_back(total / elapsed);
    } while (since(begin) < seconds || rates.size() < 3);
    stop.store(true);
    round.fetch_add(1, std::memory_order_release);
    for (auto& t : threads) t.join();

    Rate result;
    std::sort(rates.begin(), rates.end());
    result.best = rates.back();
    result.median = rates[rates.size() / 2];
    result.rounds = static_cast<int>(rates.size());
    for (double s : sinks) result.sink += s;
    return result;
}

struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<uint8_t, Free>;

Buffer allocate(size_t bytes) {
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    auto* p = static_cast<uint8_t*>(std::aligned_alloc(4096, rounded));
    if (p == nullptr) throw std::bad_alloc();
    for (size_t i = 0; i < rounded; i += 8) p[i] = static_cast<uint8_t>(i / 8);  // touch every page
    return Buffer(p);
}

}  // namespace

Rate peak_rate(PeakFn run, const std::vector<int>& cpus, double seconds) {
    return timed(cpus, seconds, [run](int, uint64_t times, double* sink) {
        return static_cast<double>(run(times, sink));
    });
}

Rate bandwidth(const Table& table, const std::string& kind, size_t bytes, const std::vector<int>& cpus,
               double seconds) {
    if (kind != "read" && kind != "write" && kind != "copy")
        throw std::invalid_argument("kind is read, write or copy, not '" + kind + "'");
    const size_t part = bytes / std::max<size_t>(cpus.size(), 1);
    if (part < 128) throw std::invalid_argument("a working set has at least 128 bytes per thread");
    const size_t half = part / 2;
    std::vector<Buffer> buffers;
    for (size_t i = 0; i < cpus.size(); ++i) buffers.push_back(allocate(part));
    return timed(cpus, seconds, [&](int thread, uint64_t times, double* sink) {
        uint8_t* p = buffers[static_cast<size_t>(thread)].get();
        uint64_t sum = 0;
        for (uint64_t i = 0; i < times; ++i) {
            if (kind[0] == 'r') {
                sum += table.read(p, part);
            } else if (kind[0] == 'w') {
                table.write(p, part, static_cast<uint8_t>(i));
            } else {
                table.copy(p + half, p, half);
            }
            asm volatile("" : : "r"(p) : "memory");
        }
        *sink += static_cast<double>(sum + p[part - 1]);
        return static_cast<double>(times) * static_cast<double>(kind[0] == 'c' ? 2 * half : part);
    });
}

}  // namespace paredown
