#include "platform/linux/read.h"

#include <charconv>
#include <fstream>
#include <sstream>

namespace deepmnn {

int64_t parse_number(const std::string& text) {
  int64_t value = kNoNumber;
  const char* const end = text.data() + text.size();
  const std::from_chars_result result = std::from_chars(text.data(), end, value);
  return result.ec == std::errc() && result.ptr == end && value >= 0 ? value : kNoNumber;
}

std::string read_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

int64_t read_number(const std::string& path) { return parse_number(read_line(path)); }

int64_t read_field(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name, value;
    words >> name >> value;
    if (name == key) return parse_number(value);
  }
  return kNoNumber;
}

}  // namespace deepmnn
