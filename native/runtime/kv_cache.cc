#include "runtime/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <numeric>
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

KvCache::KvCache(const std::vector<CacheInfo>& entries, int64_t blocks, int64_t block_size, CacheType type,
                 int64_t recent_blocks)
    : entries_(entries),
      blocks_(blocks),
      recent_blocks_(recent_blocks < 0 ? blocks : recent_blocks),
      block_size_(block_size),
      type_(type) {
  if (blocks < 1 || blocks > INT32_MAX) fail_request(std::to_string(blocks) + " cache blocks", "1 to 2^31 - 1");
  if (block_size < 1 || block_size > kMaxBlockSize) {
    fail_request("a cache block size of " + std::to_string(block_size), "1 to 2^20");
  }
  if (recent_blocks_ > blocks) fail_request(std::to_string(recent_blocks_) + " places for recent rows", "one a block");
  int64_t total = 0;
  for (size_t entry = 0; entry < entries.size(); ++entry) {
    if (block_size % entries[entry].ratio) {
      fail_request("a cache block size of " + std::to_string(block_size),
                   "a multiple of " + std::to_string(entries[entry].ratio) + ", the tokens of a row of " +
                       entries[entry].name);
    }
    window_ = std::max(window_, entries[entry].window);
    offsets_.push_back(total);
    const int64_t rows = pool_blocks(entry) * rows_of_block(entry);  // below 2^51
    const int64_t row = row_nbytes(entry);                           // below 2^34
    if (rows > 0 && row > (kMaxNbytes - total) / rows) fail_request("a cache of more than 2^62 bytes", "fewer blocks");
    total = (total + rows * row + 63) / 64 * 64;
  }
  memory_ = Memory(total, "a KV cache");
  if (window_ == 0) return;
  recents_.assign(static_cast<size_t>(blocks), -1);
  owners_.assign(static_cast<size_t>(recent_blocks_), -1);
  if (recent_blocks_ == blocks) {
    std::iota(recents_.begin(), recents_.end(), 0);
    std::iota(owners_.begin(), owners_.end(), 0);
  }
}

int64_t KvCache::row_nbytes(size_t entry) const {
  const int64_t width = entries_[entry].width;
  if (type(entry) != CacheType::int8) return width * (type(entry) == CacheType::bf16 ? 2 : 4);
  return scales_offset(entry) + (width + kCacheGroup - 1) / kCacheGroup * 4;
}

void KvCache::place_recent(int64_t block, int64_t place) {
  check_block(block, blocks_);
  if (place < -1 || place >= recent_blocks()) {
    fail_request("place " + std::to_string(place) + " for recent rows", "-1 to " + std::to_string(recent_blocks() - 1));
  }
  if (window_ == 0) return;
  int32_t& had = recents_[static_cast<size_t>(block)];
  if (had >= 0) owners_[static_cast<size_t>(had)] = -1;
  had = static_cast<int32_t>(place);
  if (place < 0) return;
  int32_t& owner = owners_[static_cast<size_t>(place)];
  if (owner >= 0) recents_[static_cast<size_t>(owner)] = -1;
  owner = static_cast<int32_t>(block);
}

uint8_t* KvCache::rows(size_t entry, int64_t block) const {
  const int64_t at = is_recent(entry) ? recent(block) : block;
  return at < 0 ? nullptr : data(entry) + at * entry_nbytes(entry);
}

int64_t KvCache::resident_nbytes() const {
  return deepmnn::resident_nbytes(memory_.data(), memory_.data() + memory_.nbytes());
}

bool KvCache::fits(const std::vector<CacheInfo>& entries) const { return entries == entries_; }

int64_t KvCache::block_nbytes() const {
  int64_t total = 0;
  for (size_t entry = 0; entry < entries_.size(); ++entry) total += entry_nbytes(entry);
  return total;
}

void KvCache::read_block(int64_t block, uint8_t* to) const {
  check_block(block, blocks_);
  for (size_t entry = 0; entry < entries_.size(); ++entry) {
    const size_t nbytes = static_cast<size_t>(entry_nbytes(entry));
    const uint8_t* from = rows(entry, block);
    if (from) std::memcpy(to, from, nbytes);
    if (!from) std::memset(to, 0, nbytes);
    to += nbytes;
  }
}

void KvCache::write_block(int64_t block, const uint8_t* from) {
  check_block(block, blocks_);
  for (size_t entry = 0; entry < entries_.size(); ++entry) {
    const size_t nbytes = static_cast<size_t>(entry_nbytes(entry));
    uint8_t* to = rows(entry, block);
    if (to) std::memcpy(to, from, nbytes);
    from += nbytes;
  }
}

void KvCache::copy_block(int64_t source, int64_t target) {
  check_block(source, blocks_);
  check_block(target, blocks_);
  if (source == target) return;
  for (size_t entry = 0; entry < entries_.size(); ++entry) {
    const uint8_t* from = rows(entry, source);
    uint8_t* to = rows(entry, target);
    if (from && to) std::memcpy(to, from, static_cast<size_t>(entry_nbytes(entry)));
  }
}

}  // namespace deepmnn
