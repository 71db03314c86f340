// Files, and copies of them whose place in memory can be chosen.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace deepmnn {

// A file's bytes, read-only: mapped, or read into memory where the platform cannot map. The first byte is aligned to
// 64. Throws Error("artifact") when it cannot be opened.
//
// A file that is mapped can be cut, or its disk can fail, while it is read. What is missing then reads as zeros, and
// who has read asks check() whether that happened.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }
  uint64_t nbytes() const { return nbytes_; }
  const std::string& path() const { return path_; }
  // Asks the system to read the whole file soon.
  void prefetch() const;
  // Throws Error("artifact") when not all of its bytes were there to read, from then on every time. Costs two loads.
  void check() const;

 private:
  const uint8_t* data_ = nullptr;
  uint64_t nbytes_ = 0;
  const std::string path_;
  [[maybe_unused]] struct WatchedRange* watch_ = nullptr;
  [[maybe_unused]] uint64_t probe_ = 0;  // a byte that no file has that was cut anywhere before it
  [[maybe_unused]] uint8_t probed_ = 0;  // what it was
};

// Some bytes of a file, inside it; or zeros, with no file.
struct FilePart {
  const MappedFile* file = nullptr;
  uint64_t offset = 0;
  uint64_t nbytes = 0;
};

// Parts one after another, read-only: the files' pages where the platform can map them once more and every part but the
// last one begins and ends with a page, else a copy. Zeros take no memory where pages are taken when they are used.
class JoinedParts {
 public:
  // The files must stay longer than this. Throws Error("artifact") when there is no room for them.
  explicit JoinedParts(std::vector<FilePart> parts);
  ~JoinedParts();
  JoinedParts(const JoinedParts&) = delete;
  JoinedParts& operator=(const JoinedParts&) = delete;

  const uint8_t* data() const { return data_; }
  // As MappedFile::check, for what was read here. A file that was cut is found by its own check as well.
  void check() const;

 private:
  uint8_t* data_ = nullptr;
  uint64_t nbytes_ = 0;
  [[maybe_unused]] const std::vector<FilePart> parts_;
  [[maybe_unused]] struct WatchedRange* watch_ = nullptr;
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
