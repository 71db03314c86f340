#include "runtime/memory.h"

#include <algorithm>
#include <limits>
#include <string>

#include "runtime/fail.h"

namespace deepmnn {
namespace {

constexpr int64_t kAlign = 64;
constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 2;  // more than any machine has
constexpr int64_t kUnchecked = int64_t{64} << 20;                   // for smaller blocks the system is not worth asking

}  // namespace

int64_t nbytes_of(int64_t count, int64_t item_nbytes) {
  int64_t nbytes = 0;
  const bool countable = !__builtin_mul_overflow(count, item_nbytes, &nbytes) && nbytes <= kMost;
  return countable ? nbytes : kMost;
}

// Neither is more than kMost.
int64_t sum_of(int64_t nbytes, int64_t more) { return std::min(nbytes, kMost - more) + more; }

void fail_memory(int64_t nbytes, const char* what) {
  fail_request(std::string(what) + " of " + std::to_string(nbytes) + " bytes",
               "at most the memory available (" + std::to_string(available_memory()) + " bytes)");
}

void require_memory(int64_t nbytes, const char* what) {
  if (nbytes > kUnchecked && nbytes > available_memory()) fail_memory(nbytes, what);
}

Memory::Memory(int64_t nbytes, const char* what) : nbytes_(nbytes) {
  require_memory(nbytes, what);
  block_ = allocate_zeroed(nbytes);
  if (!block_) fail_memory(nbytes, what);
}

void MemoryUse::add(const Memory& memory, int64_t peak) {
  nbytes += memory.nbytes();
  if (memory.data()) resident_nbytes += deepmnn::resident_nbytes(memory.data(), memory.data() + memory.nbytes());
  peak_nbytes += peak;
}

void Scratch::use(MemoryUse& use, bool reset) {
  for (const Memory& block : blocks_) use.add(block, 0);
  use.peak_nbytes += std::max(peak_, full_ + used_);
  if (reset) peak_ = 0;
}

void Scratch::reset() {
  peak_ = std::max(peak_, full_ + used_);
  if (blocks_.size() > 1) {
    const int64_t total = full_ + blocks_.back().nbytes();
    blocks_.clear();
    blocks_.emplace_back(total, "working memory");
  }
  used_ = full_ = 0;
}

// Blocks that came after the mark become one, for what will be taken next.
void Scratch::rewind(const Mark& mark) {
  peak_ = std::max(peak_, full_ + used_);
  if (blocks_.size() == mark.blocks) {
    used_ = mark.used;
    return;
  }
  used_ = 0;
  if (blocks_.size() == mark.blocks + 1) return;
  int64_t more = 0;
  for (size_t i = mark.blocks; i < blocks_.size(); ++i) more += blocks_[i].nbytes();
  for (size_t i = mark.blocks; i + 1 < blocks_.size(); ++i) full_ -= blocks_[i].nbytes();
  blocks_.resize(mark.blocks);
  blocks_.emplace_back(more, "working memory");
}

void Scratch::reserve(int64_t nbytes) {
  if (!blocks_.empty()) return;
  blocks_.emplace_back(nbytes, "working memory");
}

uint8_t* Scratch::take_bytes(int64_t count, int64_t item_nbytes) {
  const int64_t nbytes = (nbytes_of(count, item_nbytes) + kAlign - 1) / kAlign * kAlign;
  if (blocks_.empty() || used_ + nbytes > blocks_.back().nbytes()) {
    Memory block(std::max<int64_t>(nbytes, 1 << 16), "working memory");
    if (!blocks_.empty()) full_ += blocks_.back().nbytes();
    blocks_.push_back(std::move(block));
    used_ = 0;
  }
  uint8_t* start = blocks_.back().data() + used_;
  used_ += nbytes;
  return start;
}

}  // namespace deepmnn
