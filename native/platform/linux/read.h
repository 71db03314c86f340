// The small text files of /proc and /sys.
#pragma once

#include <cstdint>
#include <string>

namespace deepmnn {

constexpr int64_t kNoNumber = INT64_MAX;

// The number that the text is, all of it digits, or kNoNumber.
int64_t parse_number(const std::string& text);

// The first line; "" when there is no such file.
std::string read_line(const std::string& path);

// The number that a file's first line is, or kNoNumber.
int64_t read_number(const std::string& path);

// The value of `key` in a file of "key value ..." lines, or kNoNumber.
int64_t read_field(const std::string& path, const std::string& key);

}  // namespace deepmnn
