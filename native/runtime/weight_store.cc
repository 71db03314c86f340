#include "runtime/weight_store.h"

#include <cstring>

#include "platform/memory.h"
#include "runtime/fail.h"

namespace deepmnn {
namespace {

void check(const WeightInfo& weight, const std::string& shard, uint64_t file_nbytes) {
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

// Whether each weight is a matrix that the workers of a dispatch read from first to last block, a part each. Experts
// and tables are read where the tokens send them.
std::vector<bool> read_in_order(const Program& program) {
  std::vector<bool> in_order(program.weights.size(), false);
  for (const Instruction& instruction : program.instructions) {
    if (instruction.op == "moe" || instruction.op == "expert_linear" || instruction.op == "embedding") continue;
    for (uint32_t id : instruction.weights) in_order[id] = program.weights[id].format != Format::vector;
  }
  return in_order;
}

[[noreturn]] void fail_copy(uint64_t nbytes) {
  fail_request("a private copy of " + std::to_string(nbytes) + " bytes of weights for numa",
               "at most the memory available (" + std::to_string(available_memory()) + " bytes); or numa off");
}

// Each node gets the blocks that its workers start with: ThreadPool::open cuts a range in the same way.
void place_parts(const Weight& weight, uint8_t* begin, uint8_t* end, const Numa& numa, int workers) {
  const int64_t blocks = (weight.rows + kBlockRows - 1) / kBlockRows;
  const int64_t block = block_nbytes(weight.format, weight.cols, weight.group_size);
  for (size_t node = 0; node < numa.nodes().size(); ++node) {
    const int64_t from = blocks * numa.first_worker(node, workers) / workers;
    const int64_t to = blocks * numa.first_worker(node + 1, workers) / workers;
    const bool last = node + 1 == numa.nodes().size();
    numa.place(begin + from * block, last ? end : begin + to * block, node);
  }
}

}  // namespace

WeightStore::WeightStore(const std::string& directory, const Program& program, const Numa& numa, int workers) {
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
    check(info, program.shards[info.shard], shard.nbytes());
    weights_.push_back({shard.data() + info.offset, info.rows, info.cols, info.group_size, info.format});
    nbytes_ += static_cast<int64_t>(info.nbytes);
  }
  if (numa.active()) copy_to_nodes(program, numa, workers);
}

void WeightStore::copy_to_nodes(const Program& program, const Numa& numa, int workers) {
  uint64_t total = 0;
  for (const auto& shard : shards_) total += shard->nbytes();
  if (total > static_cast<uint64_t>(available_memory())) fail_copy(total);
  for (const auto& shard : shards_) {
    copies_.push_back(std::make_unique<PrivateCopy>(shard->nbytes()));
    if (shard->nbytes() > 0 && !copies_.back()->data()) fail_copy(shard->nbytes());
  }
  const std::vector<bool> in_order = read_in_order(program);
  for (size_t id = 0; id < weights_.size(); ++id) {
    const WeightInfo& info = program.weights[id];
    uint8_t* copy = copies_[info.shard]->data() + info.offset;
    if (in_order[id]) {
      place_parts(weights_[id], copy, copy + info.nbytes, numa, workers);
    } else {
      numa.interleave(copy, copy + info.nbytes);
    }
    std::memcpy(copy, weights_[id].data, info.nbytes);
    weights_[id].data = copy;
  }
  shards_.clear();
}

}  // namespace deepmnn
