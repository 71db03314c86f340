#include "platform/direct_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "runtime/fail.h"

namespace deepmnn {
namespace {

constexpr int64_t kMostAtOnce = int64_t{1} << 30;          // the kernel takes no more than 2 GiB
constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;  // a FIFO is refused, not waited for

FileState state_of(const struct stat& status) {
  FileState state;
  state.nbytes = static_cast<uint64_t>(status.st_size);
  state.written_ns = status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec;
  state.changed_ns = status.st_ctim.tv_sec * 1000000000 + status.st_ctim.tv_nsec;
  state.links = static_cast<uint64_t>(status.st_nlink);
  state.mode = status.st_mode;
  state.owner = status.st_uid;
  return state;
}

// Whether the bytes are those of before. Who writes can put back the time of the bytes, but not that of the status; a
// file that is removed, or has another mode or owner, is still the same.
bool same_bytes(const FileState& now, const FileState& then) {
  if (now.nbytes != then.nbytes || now.written_ns != then.written_ns) return false;
  return now.changed_ns == then.changed_ns || now.links != then.links || now.mode != then.mode ||
         now.owner != then.owner;
}

// Bytes that came, all of them unless the file ends or the disk fails: then errno says, 0 for the end.
int64_t read_all(int file, uint64_t offset, int64_t nbytes, uint8_t* to) {
  int64_t done = 0;
  errno = 0;
  while (done < nbytes) {
    const size_t count = static_cast<size_t>(std::min(nbytes - done, kMostAtOnce));
    const ssize_t got = pread(file, to + done, count, static_cast<off_t>(offset) + done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return done;
    done += got;
  }
  return done;
}

}  // namespace

DirectFile::DirectFile(const std::string& path) : path_(path) {
  buffered_ = open(path.c_str(), kFlags);
  struct stat status;
  if (buffered_ < 0 || fstat(buffered_, &status) != 0 || !S_ISREG(status.st_mode)) {
    const std::string reason = buffered_ < 0 ? std::strerror(errno) : "not a regular file";
    if (buffered_ >= 0) close(buffered_);
    fail_artifact("cannot open " + path + ": " + reason, "a readable file");
  }
  opened_ = state_of(status);
  file_ = open(path.c_str(), kFlags | O_DIRECT);
  struct stat same;  // the path may have become another file's in between
  if (file_ >= 0 && (fstat(file_, &same) != 0 || same.st_ino != status.st_ino || same.st_dev != status.st_dev)) {
    close(file_);
    file_ = -1;
  }
  direct_ = file_ >= 0;
  posix_fadvise(buffered_, 0, 0, POSIX_FADV_RANDOM);  // nothing is read ahead
}

DirectFile::~DirectFile() {
  close(buffered_);
  if (file_ >= 0) close(file_);
}

void DirectFile::read(uint64_t offset, int64_t nbytes, uint8_t* to) const {
  const int64_t before = static_cast<int64_t>(offset % kReadAlign);
  int64_t got = -1;
  if (direct_.load(std::memory_order_relaxed)) {
    const int64_t whole = (before + nbytes + kReadAlign - 1) / kReadAlign * kReadAlign;
    got = read_all(file_, offset - static_cast<uint64_t>(before), whole, to - before) - before;
    if (got < nbytes && errno == EINVAL) {  // some file systems say so only now
      direct_.store(false, std::memory_order_relaxed);
      got = -1;
    }
  }
  if (got < 0 && !direct_.load(std::memory_order_relaxed)) {
    got = read_all(buffered_, offset, nbytes, to);
    const int error = errno;
    posix_fadvise(buffered_, static_cast<off_t>(offset), nbytes, POSIX_FADV_DONTNEED);
    errno = error;
  }
  if (got < nbytes) fail_read(offset, nbytes, errno == 0 ? "it ends before" : std::strerror(errno));
  struct stat status;
  if (fstat(buffered_, &status) != 0) fail_read(offset, nbytes, std::strerror(errno));
  if (!same_bytes(state_of(status), opened_)) {
    fail_read(offset, nbytes, "it was changed while the model used it");
  }
}

void DirectFile::fail_read(uint64_t offset, int64_t nbytes, const std::string& reason) const {
  fail_artifact(path_ + ": bytes " + std::to_string(offset) + " to " +
                    std::to_string(offset + static_cast<uint64_t>(nbytes)) + " cannot be read: " + reason,
                "a file that stays as it is; copy or convert the model again, and load it again");
}

}  // namespace deepmnn
