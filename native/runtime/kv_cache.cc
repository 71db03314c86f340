#include "runtime/kv_cache.h"

#include <cstring>
#include <string>

#include "runtime/fail.h"

namespace deepmnn {
namespace {

constexpr int64_t kMaxBlockSize = int64_t{1} << 20;
constexpr int64_t kMaxNbytes = int64_t{1} << 62;

void check_block(int64_t block, int64_t blocks) {
  if (block < 0 || block >= blocks) {
    fail_request("cache block " + std::to_string(block), "0 to " + std::to_string(blocks - 1));
  }
}

}  // namespace

KvCache::KvCache(const std::vector<CacheInfo>& entries, int64_t blocks, int64_t block_size, CacheType type)
    : entries_(entries), blocks_(blocks), block_size_(block_size), type_(type) {
  if (blocks < 1 || blocks > INT32_MAX) fail_request(std::to_string(blocks) + " cache blocks", "1 to 2^31 - 1");
  if (block_size < 1 || block_size > kMaxBlockSize) {
    fail_request("a cache block size of " + std::to_string(block_size), "1 to 2^20");
  }
  int64_t total = 0;
  for (size_t entry = 0; entry < entries.size(); ++entry) {
    offsets_.push_back(total);
    const int64_t rows = blocks * block_size;  // below 2^51
    const int64_t row = row_nbytes(entry);     // below 2^34
    if (row > (kMaxNbytes - total) / rows) fail_request("a cache of more than 2^62 bytes", "fewer blocks");
    total = (total + rows * row + 63) / 64 * 64;
  }
  memory_ = Memory(total, "a KV cache");
}

int64_t KvCache::row_nbytes(size_t entry) const {
  const int64_t width = entries_[entry].width;
  if (type_ != CacheType::int8) return width * (type_ == CacheType::bf16 ? 2 : 4);
  return scales_offset(entry) + (width + kCacheGroup - 1) / kCacheGroup * 4;
}

int64_t KvCache::resident_nbytes() const {
  return deepmnn::resident_nbytes(memory_.data(), memory_.data() + memory_.nbytes());
}

bool KvCache::fits(const std::vector<CacheInfo>& entries) const {
  if (entries.size() != entries_.size()) return false;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (entries[i].name != entries_[i].name || entries[i].width != entries_[i].width) return false;
  }
  return true;
}

int64_t KvCache::block_nbytes() const {
  int64_t total = 0;
  for (size_t entry = 0; entry < entries_.size(); ++entry) total += block_size_ * row_nbytes(entry);
  return total;
}

void KvCache::read_block(int64_t block, uint8_t* rows) const {
  check_block(block, blocks_);
  for (size_t entry = 0; entry < entries_.size(); ++entry) {
    const int64_t nbytes = block_size_ * row_nbytes(entry);
    std::memcpy(rows, data(entry) + block * nbytes, static_cast<size_t>(nbytes));
    rows += nbytes;
  }
}

void KvCache::write_block(int64_t block, const uint8_t* rows) {
  check_block(block, blocks_);
  for (size_t entry = 0; entry < entries_.size(); ++entry) {
    const int64_t nbytes = block_size_ * row_nbytes(entry);
    std::memcpy(data(entry) + block * nbytes, rows, static_cast<size_t>(nbytes));
    rows += nbytes;
  }
}

void KvCache::copy_block(int64_t source, int64_t target) {
  check_block(source, blocks_);
  check_block(target, blocks_);
  if (source == target) return;
  for (size_t entry = 0; entry < entries_.size(); ++entry) {
    const int64_t nbytes = block_size_ * row_nbytes(entry);
    std::memcpy(data(entry) + target * nbytes, data(entry) + source * nbytes, static_cast<size_t>(nbytes));
  }
}

}  // namespace deepmnn
