// The weights of a model: shard files mapped read-only and used in place; on several memory nodes a private copy of
// them (docs/numa.md).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "runtime/numa.h"
#include "runtime/program.h"

namespace deepmnn {

// A file mapped read-only. Throws Error("artifact") when it cannot be opened.
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

// A copy of a file in memory whose pages may be placed before they are filled. Throws Error("request") when the machine
// has not got that much.
class PrivateCopy {
 public:
  explicit PrivateCopy(uint64_t nbytes);
  ~PrivateCopy();
  PrivateCopy(const PrivateCopy&) = delete;
  PrivateCopy& operator=(const PrivateCopy&) = delete;

  uint8_t* data() const { return data_; }

 private:
  uint8_t* data_ = nullptr;
  uint64_t nbytes_;
};

class WeightStore {
 public:
  // Maps the program's shards in `directory` and checks that every weight lies inside its file and has the size its
  // layout says. With numa active they are then copied, each worker's part of a matrix to its node.
  WeightStore(const std::string& directory, const Program& program, const Numa& numa, int workers);

  const Weight& operator[](size_t id) const { return weights_[id]; }
  int64_t nbytes() const { return nbytes_; }  // of all weights

 private:
  void copy_to_nodes(const Program& program, const Numa& numa, int workers);

  std::vector<std::unique_ptr<MappedFile>> shards_;
  std::vector<std::unique_ptr<PrivateCopy>> copies_;  // instead of the shards
  std::vector<Weight> weights_;
  int64_t nbytes_ = 0;
};

}  // namespace deepmnn
