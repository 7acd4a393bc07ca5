// What this processor can do, as the processor and the operating system say it together.
#pragma once
#include <string>
#include <vector>

#include "table.hpp"

namespace paredown {

// Features usable here: cpuid's flag, the register state enabled in XCR0 and, for AMX, the permission
// that Linux gives on request (asked for once).
std::vector<std::string> features();

// Names of the instruction-set levels usable here, "scalar" first.
std::vector<std::string> levels();

// The table of a level; throws std::invalid_argument naming the usable ones.
const Table& table(const std::string& level);

}  // namespace paredown
