// The weights of a model: shard files mapped read-only and used in place; on several memory nodes a private copy of
// them (docs/numa.md).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "platform/files.h"
#include "runtime/numa.h"
#include "runtime/program.h"

namespace deepmnn {

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
