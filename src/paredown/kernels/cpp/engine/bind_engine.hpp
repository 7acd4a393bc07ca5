// The Python face of the native engine.
#pragma once
#include <nanobind/nanobind.h>

namespace paredown::engine {

void bind_engine(nanobind::module_& m);

}  // namespace paredown::engine
