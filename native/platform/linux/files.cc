#include "platform/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "platform/linux/faults.h"
#include "platform/linux/page.h"
#include "runtime/fail.h"

namespace deepmnn {
namespace {

// The last byte of the last page that is no zero, or the page's first byte. In the page where a file is cut zeros take
// the place of what is gone, without a fault; reading a later page is a fault. So whoever reads this byte after a cut
// finds out, or nothing but zeros has been lost.
uint64_t find_probe(const uint8_t* data, uint64_t nbytes) {
  const uint64_t first = (nbytes - 1) / page_nbytes() * page_nbytes();
  uint64_t probe = nbytes - 1;
  while (probe > first && data[probe] == 0) --probe;
  return probe;
}

[[noreturn]] void fail_damaged(const std::string& path) {
  fail_artifact(path + " was cut short or overwritten, or its disk failed, while the model used it",
                "a file that stays as it is; copy or convert the model again, and load it again");
}

// Pages that are zeros and take no memory until they are written to; null where there is no room.
uint8_t* map_zeros(uint64_t nbytes, int protection) {
  void* mapped = mmap(nullptr, nbytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return mapped == MAP_FAILED ? nullptr : static_cast<uint8_t*>(mapped);
}

// Maps the parts of files once more, over zeros at `begin`: whether all could be.
bool map_parts(uint8_t* begin, const std::vector<FilePart>& parts) {
  uint64_t at = 0;
  for (const FilePart& part : parts) {
    if (part.file) {
      if (at % page_nbytes() != 0 || part.offset % page_nbytes() != 0) return false;
      // Of length 0: what is there stays, and the same pages come here, too (mremap(2)). No file has to be open.
      void* source = const_cast<uint8_t*>(part.file->data() + part.offset);
      if (mremap(source, 0, part.nbytes, MREMAP_MAYMOVE | MREMAP_FIXED, begin + at) == MAP_FAILED) return false;
    }
    at += part.nbytes;
  }
  return true;
}

void copy_parts(uint8_t* begin, const std::vector<FilePart>& parts) {
  for (const FilePart& part : parts) {
    if (part.file) std::memcpy(begin, part.file->data() + part.offset, part.nbytes);
    begin += part.nbytes;
  }
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a FIFO is refused, not waited for
  struct stat status;
  if (file < 0 || fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
    const std::string reason = file < 0 ? std::strerror(errno) : "not a regular file";
    if (file >= 0) close(file);
    fail_artifact("cannot open " + path + ": " + reason, "a readable file");
  }
  nbytes_ = static_cast<uint64_t>(status.st_size);
  if (nbytes_ > 0) {  // an empty file cannot be mapped
    void* mapped = mmap(nullptr, nbytes_, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) {
      const std::string reason = std::strerror(errno);
      close(file);
      fail_artifact("cannot map " + path + ": " + reason, "a file that fits the address space");
    }
    data_ = static_cast<const uint8_t*>(mapped);
  }
  close(file);
  if (!data_) return;
  watch_ = watch_range(data_, nbytes_);
  probe_ = find_probe(data_, nbytes_);
  probed_ = data_[probe_];
}

MappedFile::~MappedFile() {
  if (!data_) return;
  unwatch_range(watch_);
  munmap(const_cast<uint8_t*>(data_), nbytes_);
}

void MappedFile::check() const {
  if (!data_) return;
  const uint8_t found = *const_cast<const volatile uint8_t*>(data_ + probe_);
  std::atomic_signal_fence(std::memory_order_seq_cst);  // to read it may be what sets the mark
  if (found == probed_ && !watch_->damaged.load(std::memory_order_relaxed)) return;
  fail_damaged(path_);
}

void MappedFile::prefetch() const {
  if (data_) madvise(const_cast<uint8_t*>(data_), nbytes_, MADV_WILLNEED);
}

JoinedParts::JoinedParts(std::vector<FilePart> parts) : parts_(std::move(parts)) {
  for (const FilePart& part : parts_) nbytes_ += part.nbytes;
  if (nbytes_ == 0) return;
  data_ = map_zeros(nbytes_, PROT_READ);
  const bool is_mapped = data_ && map_parts(data_, parts_);
  if (data_ && !is_mapped) {
    munmap(data_, nbytes_);
    data_ = map_zeros(nbytes_, PROT_READ | PROT_WRITE);
  }
  if (!data_) {
    fail_artifact("cannot map " + std::to_string(nbytes_) + " bytes of weights: " + std::strerror(errno),
                  "weights that fit the address space");
  }
  const auto is_of_file = [](const FilePart& part) { return part.file != nullptr; };
  if (!is_mapped) {
    copy_parts(data_, parts_);
  } else if (std::any_of(parts_.begin(), parts_.end(), is_of_file)) {
    watch_ = watch_range(data_, nbytes_);
  }
}

JoinedParts::~JoinedParts() {
  if (watch_) unwatch_range(watch_);
  if (data_) munmap(data_, nbytes_);
}

void JoinedParts::check() const {
  if (!watch_ || !watch_->damaged.load(std::memory_order_relaxed)) return;
  uint64_t left = watch_->fault.load(std::memory_order_relaxed) - reinterpret_cast<uintptr_t>(data_);
  for (const FilePart& part : parts_) {
    if (left < part.nbytes && part.file) fail_damaged(part.file->path());
    left -= std::min(left, part.nbytes);
  }
  fail_damaged("a weight file");  // its last page, beyond what is the weight's
}

PrivateCopy::PrivateCopy(uint64_t nbytes) : nbytes_(nbytes) {
  if (nbytes_ == 0) return;  // nothing to map
  void* mapped = mmap(nullptr, nbytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped != MAP_FAILED) data_ = static_cast<uint8_t*>(mapped);
}

PrivateCopy::~PrivateCopy() {
  if (data_) munmap(data_, nbytes_);
}

}  // namespace deepmnn
