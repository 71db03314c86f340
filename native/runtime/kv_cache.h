// The paged KV cache: for each cache entry of a program a pool of rows [blocks, block_size, width], stored as
// docs/layouts.md says.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "runtime/memory.h"
#include "runtime/program.h"

namespace deepmnn {

class KvCache {
 public:
  // Throws Error("request") for sizes below 1 and for more than the memory available. Pages are taken when written.
  KvCache(const std::vector<CacheInfo>& entries, int64_t blocks, int64_t block_size, CacheType type);

  int64_t blocks() const { return blocks_; }
  int64_t block_size() const { return block_size_; }
  CacheType type() const { return type_; }
  int64_t nbytes() const { return memory_.nbytes(); }
  int64_t resident_nbytes() const;  // of the pages that have been written
  bool fits(const std::vector<CacheInfo>& entries) const;

  // Copies one block of every entry. Throws Error("request") for a block out of range.
  void copy_block(int64_t source, int64_t target);

  // One block of every entry, entry after entry, in block_nbytes() bytes: out of the cache, and back into it. Throw as
  // copy_block does.
  int64_t block_nbytes() const;
  void read_block(int64_t block, uint8_t* rows) const;
  void write_block(int64_t block, const uint8_t* rows);

  // Row 0 of block 0 of an entry. Row r of block b lies (b * block_size + r) * row_nbytes(entry) bytes further.
  uint8_t* data(size_t entry) const { return memory_.data() + offsets_[entry]; }
  int64_t row_nbytes(size_t entry) const;

  // int8: bytes from a row's start to its scales.
  int64_t scales_offset(size_t entry) const { return (entries_[entry].width + 3) / 4 * 4; }

 private:
  std::vector<CacheInfo> entries_;
  int64_t blocks_;
  int64_t block_size_;
  CacheType type_;
  std::vector<int64_t> offsets_;  // of each entry in memory_
  Memory memory_;
};

}  // namespace deepmnn
