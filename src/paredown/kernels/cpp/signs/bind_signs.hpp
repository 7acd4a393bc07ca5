// The Python face of products of signs.
#pragma once
#include <nanobind/nanobind.h>

namespace paredown::signs {

void bind_signs(nanobind::module_& m);

}  // namespace paredown::signs
