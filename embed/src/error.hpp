// Errors as the library throws them inside; api.cpp makes a status and a text of them.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include "dnc.h"

namespace dnc_runtime {

// Something that the user can mend: what is wrong, where, and what to do about it, in the form of Python's DncError.
class Error : public std::runtime_error {
public:
    Error(dnc_status status, const std::string& message, const std::string& where = "", const std::string& hint = "")
        : std::runtime_error(message + (where.empty() ? "" : "\n  at " + where) +
                             (hint.empty() ? "" : "\n  hint: " + hint)),
          status_(status) {}

    dnc_status status() const noexcept { return status_; }

private:
    dnc_status status_;
};

}  // namespace dnc_runtime
