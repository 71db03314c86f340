#include "runtime/mapped_weights.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "platform/memory.h"
#include "runtime/fail.h"
#include "runtime/weight_store.h"

namespace deepmnn {
namespace {

// Whether each weight is read in order by any instruction.
std::vector<bool> read_in_order(const Program& program) {
  std::vector<bool> in_order(program.weights.size(), false);
  for (const Instruction& instruction : program.instructions) {
    for (const WeightUse& use : instruction.weights) {
      if (use.reading == Reading::in_order) in_order[use.id] = true;
    }
  }
  return in_order;
}

[[noreturn]] void fail_copy(uint64_t nbytes) {
  fail_request("a private copy of " + std::to_string(nbytes) + " bytes of weights for numa",
               "at most the memory available (" + std::to_string(available_memory()) + " bytes); or numa off");
}

// Each node gets the blocks that its workers start with: ThreadPool::open cuts a range in the same way.
void place_parts(const WeightInfo& weight, uint8_t* begin, uint8_t* end, const Numa& numa, int workers) {
  const int64_t blocks = (weight.rows + kBlockRows - 1) / kBlockRows;
  const int64_t block = block_nbytes(weight.format, weight.cols);
  for (size_t node = 0; node < numa.nodes().size(); ++node) {
    const int64_t from = blocks * numa.first_worker(node, workers) / workers;
    const int64_t to = blocks * numa.first_worker(node + 1, workers) / workers;
    const bool last = node + 1 == numa.nodes().size();
    numa.place(begin + from * block, last ? end : begin + to * block, node);
  }
}

void place(const WeightInfo& weight, uint8_t* bytes, bool in_order, const Numa& numa, int workers) {
  if (in_order) {
    place_parts(weight, bytes, bytes + weight.nbytes, numa, workers);
  } else {
    numa.interleave(bytes, bytes + weight.nbytes);
  }
}

}  // namespace

MappedWeights::MappedWeights(const std::string& directory, const Program& program, const Numa& numa, int workers) {
  uint64_t file_nbytes = 0;
  for (const std::string& shard : program.shards) {
    shards_.push_back(std::make_unique<MappedFile>(directory + "/" + shard));
    file_nbytes += shards_.back()->nbytes();
  }
  // A model larger than memory is read where it is used: what is read ahead would push it out again.
  if (file_nbytes < static_cast<uint64_t>(available_memory())) {
    for (const auto& shard : shards_) shard->prefetch();
  }
  std::vector<uint64_t> sizes;
  for (const auto& shard : shards_) sizes.push_back(shard->nbytes());
  for (const WeightInfo& info : program.weights) check_weight(info, program.shards, sizes);
  map_zeros(program);
  for (const WeightInfo& info : program.weights) {
    bytes_.push_back(locate(info));
    row_blocks_.push_back(block_nbytes(info.format, info.cols));
  }
  if (numa.active()) copy_to_nodes(program, numa, workers);
  check();
}

void MappedWeights::map_zeros(const Program& program) {
  uint64_t most = 0;
  for (const WeightInfo& info : program.weights) {
    if (info.is_zeros()) most = std::max(most, info.nbytes);
  }
  if (most > 0) zeros_ = std::make_unique<JoinedParts>(std::vector<FilePart>{{nullptr, 0, most}});
}

const uint8_t* MappedWeights::locate(const WeightInfo& info) {
  if (info.is_zeros()) return zeros_->data();
  if (info.pieces.size() == 1) return shards_[info.pieces[0].shard]->data() + info.pieces[0].offset;
  std::unique_ptr<JoinedParts>& joined = joined_[info.pieces];
  if (!joined) {
    std::vector<FilePart> parts;
    for (const Piece& piece : info.pieces) {
      parts.push_back({piece.is_zeros() ? nullptr : shards_[piece.shard].get(), piece.offset, piece.nbytes});
    }
    joined = std::make_unique<JoinedParts>(std::move(parts));
  }
  return joined->data();
}

void MappedWeights::check() const {
  for (const auto& shard : shards_) shard->check();
  for (const auto& joined : joined_) joined.second->check();
}

void MappedWeights::copy_to_nodes(const Program& program, const Numa& numa, int workers) {
  uint64_t total = 0;
  for (const auto& shard : shards_) total += shard->nbytes();
  for (const auto& joined : joined_) {
    for (const Piece& piece : joined.first) total += piece.is_zeros() ? 0 : piece.nbytes;
  }
  if (total > static_cast<uint64_t>(available_memory())) fail_copy(total);
  for (const auto& shard : shards_) {
    copies_.push_back(std::make_unique<PrivateCopy>(shard->nbytes()));
    if (shard->nbytes() > 0 && !copies_.back()->data()) fail_copy(shard->nbytes());
  }
  const std::vector<bool> in_order = read_in_order(program);
  std::set<Piece> copied;  // several weights may have the same bytes
  for (size_t id = 0; id < bytes_.size(); ++id) {
    const WeightInfo& info = program.weights[id];
    if (info.is_zeros() || info.pieces.size() > 1) continue;
    uint8_t* const copy = copies_[info.pieces[0].shard]->data() + info.pieces[0].offset;
    if (copied.insert(info.pieces[0]).second) {
      place(info, copy, in_order[id], numa, workers);
      std::memcpy(copy, bytes_[id], info.nbytes);
    }
    bytes_[id] = copy;
  }
  copy_joined(program, in_order, numa, workers);
  check();
  joined_.clear();
  shards_.clear();
}

// Private memory cannot be mapped twice: what is in several of them is copied into each. Their zeros are never written
// to, and take none.
void MappedWeights::copy_joined(const Program& program, const std::vector<bool>& in_order, const Numa& numa,
                                int workers) {
  std::map<const uint8_t*, uint8_t*> copies;
  for (size_t id = 0; id < bytes_.size(); ++id) {
    const WeightInfo& info = program.weights[id];
    if (info.pieces.size() == 1) continue;
    uint8_t*& copy = copies[bytes_[id]];
    if (!copy) {
      copies_.push_back(std::make_unique<PrivateCopy>(info.nbytes));
      copy = copies_.back()->data();
      if (!copy) fail_copy(info.nbytes);
      place(info, copy, in_order[id], numa, workers);
      uint64_t at = 0;
      for (const Piece& piece : info.pieces) {
        if (!piece.is_zeros()) std::memcpy(copy + at, bytes_[id] + at, piece.nbytes);
        at += piece.nbytes;
      }
    }
    bytes_[id] = copy;
  }
}

}  // namespace deepmnn
