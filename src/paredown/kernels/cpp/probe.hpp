// Timed probes: pinned threads start together; the best of several short rounds is the figure.
#pragma once
#include <string>
#include <vector>

#include "table.hpp"

namespace paredown {

struct Rate {
    double best = 0;    // operations or bytes per second, fastest round
    double median = 0;  // the same, median round
    int rounds = 0;
    double sink = 0;  // what was computed, so that it must be computed
};

// `cpus` names one core per thread; each thread is pinned to its own.
Rate peak_rate(PeakFn run, const std::vector<int>& cpus, double seconds);

// `kind` is read, write or copy. Every thread owns an equal part of the working set of `bytes` bytes
// (for copy: half of the part is read, half is written); the rate counts bytes read plus written.
Rate bandwidth(const Table& table, const std::string& kind, size_t bytes, const std::vector<int>& cpus,
               double seconds);

}  // namespace paredown
