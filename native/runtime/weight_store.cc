#include "runtime/weight_store.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "runtime/fail.h"
#include "runtime/memory.h"

namespace deepmnn {
namespace {

[[noreturn]] void fail_copy(uint64_t nbytes) {
  fail_request("a private copy of " + std::to_string(nbytes) + " bytes of weights for numa",
               "at most the memory available (" + std::to_string(available_memory()) + " bytes); or numa off");
}

}  // namespace

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
  if (mapped == MAP_FAILED) fail_copy(nbytes_);
  data_ = static_cast<uint8_t*>(mapped);
}

PrivateCopy::~PrivateCopy() {
  if (data_) munmap(data_, nbytes_);
}

void check_weight(const WeightInfo& weight, const std::string& shard, uint64_t file_nbytes) {
  // A shape whose bytes could not even be counted cannot be inside any file.
  const bool countable = weight.rows <= (int64_t{1} << 56) / (weight.cols + 128);
  const int64_t expected = countable ? packed_nbytes(weight.format, weight.rows, weight.cols, weight.group_size) : 0;
  if (!countable || weight.nbytes != static_cast<uint64_t>(expected)) {
    fail_artifact("program.bin: weight " + weight.name + " has " + std::to_string(weight.nbytes) + " bytes",
                  std::to_string(expected) + " for its shape and layout");
  }
  if (weight.nbytes > file_nbytes || weight.offset > file_nbytes - weight.nbytes) {
    fail_artifact("weight " + weight.name + " ends at byte " + std::to_string(weight.offset) + " + " +
                      std::to_string(weight.nbytes) + " of " + shard + ", which has " + std::to_string(file_nbytes),
                  "a complete file; convert or copy the model again");
  }
}

WeightStore::WeightStore(const Program& program, std::unique_ptr<Residency> residency)
    : residency_(std::move(residency)) {
  for (const WeightInfo& info : program.weights) {
    weights_.push_back({nullptr, info.rows, info.cols, info.group_size, info.format});
    nbytes_ += static_cast<int64_t>(info.nbytes);
  }
}

void WeightStore::pin(const uint32_t* ids, int64_t n, Weight* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = weights_[ids[i]];
  residency_->pin(ids, n, out);
}

}  // namespace deepmnn
