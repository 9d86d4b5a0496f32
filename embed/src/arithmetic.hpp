// Kinds of 8-bit arithmetic: dnc/runtime/arithmetic.py in C++, as far as opening an engine needs it.
#pragma once

#include <string>

#include "bundle.hpp"

namespace dnc_runtime {

// What is lost where an engine with 8-bit numbers runs on this CPU, in the words of Python's warning; empty if nothing
// is. Throws Error where DNC_ISA is no instruction set.
std::string loss(const Bundle& bundle);

}  // namespace dnc_runtime
