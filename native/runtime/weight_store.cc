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
  for (const auto& shard : shards_) copies_.push_back(std::make_unique<PrivateCopy>(shard->nbytes()));
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
