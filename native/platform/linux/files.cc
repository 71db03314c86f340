#include "platform/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "runtime/fail.h"

namespace deepmnn {

MappedFile::MappedFile(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
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
}

MappedFile::~MappedFile() {
  if (data_) munmap(const_cast<uint8_t*>(data_), nbytes_);
}

void MappedFile::prefetch() const {
  if (data_) madvise(const_cast<uint8_t*>(data_), nbytes_, MADV_WILLNEED);
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
