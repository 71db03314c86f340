// Files, and copies of them whose place in memory can be chosen.
#pragma once

#include <cstdint>
#include <string>

namespace deepmnn {

// A file's bytes, read-only: mapped, or read into memory where the platform cannot map. The first byte is aligned to
// 64. Throws Error("artifact") when it cannot be opened.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }
  uint64_t nbytes() const { return nbytes_; }
  // Asks the system to read the whole file soon.
  void prefetch() const;

 private:
  const uint8_t* data_ = nullptr;
  uint64_t nbytes_ = 0;
};

// Room for a copy of a file in memory: pages that may be placed (platform/memory.h) before they are filled.
class PrivateCopy {
 public:
  explicit PrivateCopy(uint64_t nbytes);
  ~PrivateCopy();
  PrivateCopy(const PrivateCopy&) = delete;
  PrivateCopy& operator=(const PrivateCopy&) = delete;

  uint8_t* data() const { return data_; }  // null for no bytes, and where the system has not got that much

 private:
  uint8_t* data_ = nullptr;
  [[maybe_unused]] uint64_t nbytes_;
};

}  // namespace deepmnn
