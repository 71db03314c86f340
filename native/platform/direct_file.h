// Files that are read past the page cache, into memory of the caller.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

namespace deepmnn {

// Direct reads begin and end at multiples of it, in the file and in memory.
constexpr int64_t kReadAlign = 4096;

// What tells whether a file has been written to.
struct FileState {
  uint64_t nbytes = 0;
  int64_t written_ns = 0, changed_ns = 0;  // times of its bytes and of its status
  uint64_t links = 0;
  uint32_t mode = 0, owner = 0;
};

class DirectFile {
 public:
  // Throws Error("artifact") when it cannot be opened.
  explicit DirectFile(const std::string& path);
  ~DirectFile();
  DirectFile(const DirectFile&) = delete;
  DirectFile& operator=(const DirectFile&) = delete;

  uint64_t nbytes() const { return opened_.nbytes; }
  // Brings bytes [offset, offset + nbytes) to `to`, which stands to kReadAlign as `offset` does. What lies between them
  // and the next multiples of kReadAlign is written to as well. Leaves nothing in the page cache. Any number of threads
  // may read. Throws Error("artifact") when not all of it is there, the disk fails, or the file has been changed since
  // it was opened.
  void read(uint64_t offset, int64_t nbytes, uint8_t* to) const;

 private:
  [[noreturn]] void fail_read(uint64_t offset, int64_t nbytes, const std::string& reason) const;

  const std::string path_;
  FileState opened_;
  [[maybe_unused]] int file_ = -1;
  [[maybe_unused]] int buffered_ = -1;  // the same file, for systems that refuse direct reads
  [[maybe_unused]] mutable std::atomic<bool> direct_{true};
};

}  // namespace deepmnn
