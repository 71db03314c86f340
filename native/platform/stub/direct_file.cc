#include "platform/direct_file.h"

#include <filesystem>
#include <fstream>

#include "runtime/fail.h"

namespace deepmnn {

DirectFile::DirectFile(const std::string& path) : path_(path) {
  std::error_code error;
  const bool regular = std::filesystem::is_regular_file(path, error);
  if (regular) opened_.nbytes = std::filesystem::file_size(path, error);
  if (!regular || error) fail_artifact("cannot open " + path, "a readable file");
}

DirectFile::~DirectFile() = default;

void DirectFile::read(uint64_t offset, int64_t nbytes, uint8_t* to) const {
  std::ifstream file(path_, std::ios::binary);
  file.seekg(static_cast<std::streamoff>(offset));
  if (!file.read(reinterpret_cast<char*>(to), static_cast<std::streamsize>(nbytes))) {
    fail_read(offset, nbytes, "it ends before, or its disk failed");
  }
}

void DirectFile::fail_read(uint64_t offset, int64_t nbytes, const std::string& reason) const {
  fail_artifact(path_ + ": bytes " + std::to_string(offset) + " to " +
                    std::to_string(offset + static_cast<uint64_t>(nbytes)) + " cannot be read: " + reason,
                "a file that stays as it is; copy or convert the model again, and load it again");
}

}  // namespace deepmnn
