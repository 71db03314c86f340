#include "platform/linux/read.h"

#include <fstream>

namespace deepmnn {

std::string read_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

int64_t read_number(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : kNoNumber;
}

int64_t read_field(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string name, rest;
  int64_t value = 0;
  while (file >> name >> value) {
    if (name == key) return value;
    std::getline(file, rest);
  }
  return kNoNumber;
}

}  // namespace deepmnn
