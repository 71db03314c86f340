// Every weight resident: shard files mapped read-only and used in place; on several memory nodes a private copy of them
// (docs/numa.md). A weight in several pieces has its pages mapped once more, in order. Weights of the same bytes have
// the same address.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "platform/files.h"
#include "runtime/numa.h"
#include "runtime/program.h"
#include "runtime/residency.h"

namespace deepmnn {

class MappedWeights : public Residency {
 public:
  // Maps the program's shards in `directory`. With numa active they are then copied, each worker's part of a matrix
  // that is read in order to its node. Throws Error("artifact") when a weight does not lie inside its file, or its
  // bytes cannot be read.
  MappedWeights(const std::string& directory, const Program& program, const Numa& numa, int workers);

  void pin(const uint32_t* ids, int64_t n, Weight* out) override {
    for (int64_t i = 0; i < n; ++i) out[i].data = bytes_[ids[i]];
  }
  void pin_rows(uint32_t id, const int32_t* rows, int64_t n, const uint8_t** blocks) override {
    for (int64_t i = 0; i < n; ++i) blocks[i] = bytes_[id] + rows[i] / kBlockRows * row_blocks_[id];
  }
  void unpin() override {}  // all of it stays
  void check() const override;

 private:
  using Joined = std::map<std::vector<Piece>, std::unique_ptr<JoinedParts>>;

  void map_zeros(const Program& program);
  const uint8_t* locate(const WeightInfo& info);
  void copy_to_nodes(const Program& program, const Numa& numa, int workers);
  void copy_joined(const Program& program, const std::vector<bool>& in_order, const Numa& numa, int workers);

  std::vector<std::unique_ptr<MappedFile>> shards_;
  Joined joined_;                                     // weights of several pieces, by these
  std::unique_ptr<JoinedParts> zeros_;                // as many as the largest weight of zeros has
  std::vector<std::unique_ptr<PrivateCopy>> copies_;  // instead of the shards and what is joined
  std::vector<const uint8_t*> bytes_;                 // of each weight
  std::vector<int64_t> row_blocks_;                   // bytes of kBlockRows rows of each
};

}  // namespace deepmnn
