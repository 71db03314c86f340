#include "runtime/weight_store.h"

#include "runtime/fail.h"

namespace deepmnn {

void check_weight(const WeightInfo& weight, const std::vector<std::string>& shards,
                  const std::vector<uint64_t>& file_nbytes) {
  // A shape whose bytes could not even be counted cannot be inside any file.
  const bool countable = weight.rows <= (int64_t{1} << 56) / (weight.cols + 128);
  const int64_t expected = countable ? packed_nbytes(weight.format, weight.rows, weight.cols) : 0;
  if (!countable || weight.nbytes != static_cast<uint64_t>(expected)) {
    fail_artifact("program.bin: weight " + weight.name + " has " + std::to_string(weight.nbytes) + " bytes",
                  std::to_string(expected) + " for its shape and layout");
  }
  for (const Piece& piece : weight.pieces) {
    if (piece.is_zeros()) continue;
    const uint64_t there = file_nbytes[piece.shard];
    if (piece.nbytes <= there && piece.offset <= there - piece.nbytes) continue;
    fail_artifact("weight " + weight.name + " ends at byte " + std::to_string(piece.offset) + " + " +
                      std::to_string(piece.nbytes) + " of " + shards[piece.shard] + ", which has " +
                      std::to_string(there),
                  "a complete file; convert or copy the model again");
  }
}

WeightStore::WeightStore(const Program& program, std::unique_ptr<Residency> residency)
    : residency_(std::move(residency)) {
  for (const WeightInfo& info : program.weights) {
    weights_.push_back({nullptr, info.rows, info.cols, info.format});
    nbytes_ += static_cast<int64_t>(info.nbytes);
  }
}

void WeightStore::pin(const uint32_t* ids, int64_t n, Weight* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = weights_[ids[i]];
  residency_->pin(ids, n, out);
}

int64_t WeightStore::pin_some(const uint32_t* ids, int64_t each, int32_t* groups, int64_t n, Weight* out) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = groups[i] * each; j < (groups[i] + 1) * each; ++j) out[j] = weights_[ids[j]];
  }
  return residency_->pin_some(ids, each, groups, n, out);
}

}  // namespace deepmnn
