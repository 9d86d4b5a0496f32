// The archive of a package, NAME.dnc, that is in memory: a zip whose members are stored. dnc/runtime/package.py in C++.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <string_view>

namespace dnc_runtime {

constexpr unsigned long long max_package = (4ULL << 30) + (4ULL << 20);  // bytes, with its directory

// What is in each member, by name, as parts of `data`. Throws Error unless all of it is what dnc packs, or other tools
// do without compressing: names, kinds and sizes are looked at, contents are not.
std::map<std::string, std::string_view> read_package(std::string_view data, const std::string& where);

// The error about a package.
[[noreturn]] void refuse_package(const std::string& what, const std::string& where);

}  // namespace dnc_runtime
