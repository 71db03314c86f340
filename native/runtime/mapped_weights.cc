#include "runtime/mapped_weights.h"

#include <cstring>

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
  for (const WeightInfo& info : program.weights) {
    const MappedFile& shard = *shards_[info.shard];
    check_weight(info, program.shards[info.shard], shard.nbytes());
    bytes_.push_back(shard.data() + info.offset);
    row_blocks_.push_back(block_nbytes(info.format, info.cols));
  }
  if (numa.active()) copy_to_nodes(program, numa, workers);
  check();
}

void MappedWeights::check() const {
  for (const auto& shard : shards_) shard->check();
}

void MappedWeights::copy_to_nodes(const Program& program, const Numa& numa, int workers) {
  uint64_t total = 0;
  for (const auto& shard : shards_) total += shard->nbytes();
  if (total > static_cast<uint64_t>(available_memory())) fail_copy(total);
  for (const auto& shard : shards_) {
    copies_.push_back(std::make_unique<PrivateCopy>(shard->nbytes()));
    if (shard->nbytes() > 0 && !copies_.back()->data()) fail_copy(shard->nbytes());
  }
  const std::vector<bool> in_order = read_in_order(program);
  for (size_t id = 0; id < bytes_.size(); ++id) {
    const WeightInfo& info = program.weights[id];
    uint8_t* copy = copies_[info.shard]->data() + info.offset;
    if (in_order[id]) {
      place_parts(info, copy, copy + info.nbytes, numa, workers);
    } else {
      numa.interleave(copy, copy + info.nbytes);
    }
    std::memcpy(copy, bytes_[id], info.nbytes);
    bytes_[id] = copy;
  }
  check();
  shards_.clear();
}

}  // namespace deepmnn
