// The one exception type of the core. `kind` picks the Python class: "artifact", "request", "storage".
#pragma once

#include <stdexcept>
#include <string>

namespace deepmnn {

class Error : public std::runtime_error {
 public:
  Error(std::string kind, const std::string& message) : std::runtime_error(message), kind_(std::move(kind)) {}
  const std::string& kind() const { return kind_; }

 private:
  std::string kind_;
};

}  // namespace deepmnn
