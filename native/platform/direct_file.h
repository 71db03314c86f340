// Files that are read past the page cache, into memory of the caller.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

namespace deepmnn {

// Direct reads begin and end at multiples of it, in the file and in memory.
constexpr int64_t kReadAlign = 4096;

class DirectFile {
 public:
  // Throws Error("artifact") when it cannot be opened.
  explicit DirectFile(const std::string& path);
  ~DirectFile();
  DirectFile(const DirectFile&) = delete;
  DirectFile& operator=(const DirectFile&) = delete;

  uint64_t nbytes() const { return nbytes_; }
  // Brings bytes [offset, offset + nbytes) to `to`, which stands to kReadAlign as `offset` does. What lies between them
  // and the next multiples of kReadAlign is written to as well. Leaves nothing in the page cache. Any number of threads
  // may read. Throws Error("artifact") when not all of it is there, the disk fails, or the file has been changed since
  // it was opened.
  void read(uint64_t offset, int64_t nbytes, uint8_t* to) const;

 private:
  [[noreturn]] void fail_read(uint64_t offset, int64_t nbytes, const std::string& reason) const;

  const std::string path_;
  uint64_t nbytes_ = 0;
  [[maybe_unused]] int file_ = -1;
  [[maybe_unused]] int buffered_ = -1;  // the same file, for systems that refuse direct reads
  [[maybe_unused]] mutable std::atomic<bool> direct_{true};
  [[maybe_unused]] int64_t changed_ns_ = 0;  // when its bytes were last changed
};

}  // namespace deepmnn
