// The Python face of the kernels alone: for tests and benchmarks.
#pragma once
#include <nanobind/nanobind.h>

namespace paredown::engine {

void bind_kernels(nanobind::module_& m);

}  // namespace paredown::engine
