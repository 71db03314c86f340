// The wording of every message of the core: "found; expected ...".
#pragma once

#include <string>

#include "runtime/error.h"

namespace deepmnn {

[[noreturn]] inline void fail(const char* kind, const std::string& found, const std::string& expected) {
  throw Error(kind, expected.empty() ? found : found + "; expected " + expected);
}

[[noreturn]] inline void fail_artifact(const std::string& found, const std::string& expected) {
  fail("artifact", found, expected);
}

[[noreturn]] inline void fail_request(const std::string& found, const std::string& expected) {
  fail("request", found, expected);
}

}  // namespace deepmnn
