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
// Rounds are short, so that among many some run undisturbed on a machine that others use too.
constexpr double kRoundSeconds = 0.004;
// A working set is read in pieces of this size, one after the other, when it is larger.
constexpr size_t kPiece = 256 << 10;

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
    std::atomic<int> waiting{0}, finished{0}, round{0};
    std::atomic<bool> stop{false};
    std::atomic<uint64_t> times{1};
    struct alignas(64) Worker {
        double units = 0, sink = 0;
        Clock::time_point start, end;
    };
    std::vector<Worker> workers(static_cast<size_t>(n));
    std::vector<std::thread> threads;
    for (int i = 0; i < n; ++i)
        threads.emplace_back([&, i] {
            Worker& me = workers[static_cast<size_t>(i)];
            pin(cpus[static_cast<size_t>(i)]);
            for (int seen = 0;; ++seen) {
                waiting.fetch_add(1);
                // Yielding keeps the coordinator, which shares a core with a worker, alive.
                while (round.load(std::memory_order_acquire) == seen) std::this_thread::yield();
                if (stop.load()) return;
                me.start = Clock::now();
                me.units = work(i, times.load(), &me.sink);
                me.end = Clock::now();
                finished.fetch_add(1, std::memory_order_release);
            }
        });
    // From the first start to the last end: threads that did not run together make a slow round.
    const auto one_round = [&] {
        while (waiting.load() < n) std::this_thread::yield();
        waiting.store(0);
        finished.store(0);
        round.fetch_add(1, std::memory_order_release);
        while (finished.load(std::memory_order_acquire) < n)
            std::this_thread::sleep_for(std::chrono::microseconds(100));
        auto first = workers[0].start, last = workers[0].end;
        for (const Worker& w : workers) {
            first = std::min(first, w.start);
            last = std::max(last, w.end);
        }
        return std::chrono::duration<double>(last - first).count();
    };
    one_round();  // warms caches, pages and clocks
    for (double took = one_round(); took < kRoundSeconds; took = one_round()) {
        const double factor = std::min(took > 1e-6 ? kRoundSeconds * 1.2 / took : 1024.0, 1024.0);
        times.store(times.load() + 1 +
                    static_cast<uint64_t>(static_cast<double>(times.load()) * (factor - 1)));
    }
    std::vector<double> rates;
    const auto begin = Clock::now();
    do {
        const double elapsed = one_round();
        double total = 0;
        for (const Worker& w : workers) total += w.units;
        rates.push_back(total / elapsed);
    } while (since(begin) < seconds || rates.size() < 3);
    while (waiting.load() < n) std::this_thread::yield();
    stop.store(true);
    round.fetch_add(1, std::memory_order_release);
    for (auto& t : threads) t.join();

    Rate result;
    std::sort(rates.begin(), rates.end());
    result.best = rates.back();
    result.median = rates[rates.size() / 2];
    result.rounds = static_cast<int>(rates.size());
    for (const Worker& w : workers) result.sink += w.sink;
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
    const bool copies = kind == "copy";
    const size_t span = copies ? part / 2 : part;  // what one pass goes over
    const size_t piece = std::min(span, kPiece), pieces = span / piece;
    std::vector<Buffer> buffers;
    for (size_t i = 0; i < cpus.size(); ++i) buffers.push_back(allocate(part));
    std::vector<size_t> cursors(cpus.size(), 0);
    return timed(cpus, seconds, [&](int thread, uint64_t times, double* sink) {
        uint8_t* base = buffers[static_cast<size_t>(thread)].get();
        size_t at = cursors[static_cast<size_t>(thread)];
        uint64_t sum = 0;
        for (uint64_t i = 0; i < times; ++i) {
            uint8_t* p = base + at * piece;
            at = at + 1 < pieces ? at + 1 : 0;
            if (kind[0] == 'r') {
                sum += table.read(p, piece);
            } else if (kind[0] == 'w') {
                table.write(p, piece, static_cast<uint8_t>(i));
            } else {
                table.copy(p + span, p, piece);
            }
            asm volatile("" : : "r"(p) : "memory");
        }
        cursors[static_cast<size_t>(thread)] = at;
        *sink += static_cast<double>(sum + base[part - 1]);
        return static_cast<double>(times) * static_cast<double>(copies ? 2 * piece : piece);
    });
}

}  // namespace paredown
