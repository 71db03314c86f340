// The weights of a model: shard files mapped read-only and used in place.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
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

class WeightStore {
 public:
  // Maps the program's shards in `directory` and checks that every weight lies inside its file and has the size its
  // layout says.
  WeightStore(const std::string& directory, const Program& program);

  const Weight& operator[](size_t id) const { return weights_[id]; }
  int64_t nbytes() const { return nbytes_; }  // of all weights

 private:
  std::vector<std::unique_ptr<MappedFile>> shards_;
  std::vector<Weight> weights_;
  int64_t nbytes_ = 0;
};

}  // namespace deepmnn
