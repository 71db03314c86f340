// The paged KV cache: for each cache entry of a program a pool of rows [blocks, block_size / ratio, width], stored as
// docs/layouts.md says. A block is so many tokens of a sequence. Its recent rows (those of entries with a window) lie in
// places of their own, of which there may be fewer than blocks: whoever hands out blocks says which block has one.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "runtime/memory.h"
#include "runtime/program.h"

namespace deepmnn {

class KvCache {
 public:
  // recent_blocks: places for recent rows; with as many as blocks, or -1, each block has its own from the start.
  // Throws Error("request") for impossible sizes and for more than the memory available. Pages are taken when written.
  KvCache(const std::vector<CacheInfo>& entries, int64_t blocks, int64_t block_size, CacheType type,
          int64_t recent_blocks = -1);

  int64_t blocks() const { return blocks_; }
  int64_t recent_blocks() const { return window_ > 0 ? recent_blocks_ : 0; }
  int64_t block_size() const { return block_size_; }
  int64_t window() const { return window_; }  // the longest of the entries; 0: none has one
  CacheType type() const { return type_; }
  CacheType type(size_t entry) const { return entries_[entry].exact ? CacheType::f32 : type_; }
  int64_t nbytes() const { return memory_.nbytes(); }
  int64_t resident_nbytes() const;  // of the pages that have been written
  bool fits(const std::vector<CacheInfo>& entries) const;

  // The place of a block's recent rows; -1: it has none.
  int32_t recent(int64_t block) const { return recents_[static_cast<size_t>(block)]; }
  // Gives a block a place, whatever it holds, and takes it from the block that had it; -1: the block's rows are gone.
  // Throws Error("request") for a block or a place out of range.
  void place_recent(int64_t block, int64_t place);

  // Copies one block of every entry, recent rows where both have a place. Throws Error("request") for a block out of
  // range.
  void copy_block(int64_t source, int64_t target);

  // One block of every entry, entry after entry, in block_nbytes() bytes: out of the cache, and back into it. Recent rows
  // without a place are zeros, and not put back. Throw as copy_block does.
  int64_t block_nbytes() const;
  void read_block(int64_t block, uint8_t* rows) const;
  void write_block(int64_t block, const uint8_t* rows);

  bool is_recent(size_t entry) const { return entries_[entry].is_recent(); }
  int64_t rows_of_block(size_t entry) const { return block_size_ / entries_[entry].ratio; }

  // Row 0 of block 0 of an entry, or of place 0. Row r of block b lies (b * rows_of_block(entry) + r) *
  // row_nbytes(entry) bytes further.
  uint8_t* data(size_t entry) const { return memory_.data() + offsets_[entry]; }
  int64_t row_nbytes(size_t entry) const;

  // int8: bytes from a row's start to its scales.
  int64_t scales_offset(size_t entry) const { return (entries_[entry].width + 3) / 4 * 4; }

 private:
  int64_t pool_blocks(size_t entry) const { return is_recent(entry) ? recent_blocks_ : blocks_; }
  int64_t entry_nbytes(size_t entry) const { return rows_of_block(entry) * row_nbytes(entry); }  // of one block
  // Where a block's rows of an entry lie; null: its recent rows have no place.
  uint8_t* rows(size_t entry, int64_t block) const;

  std::vector<CacheInfo> entries_;
  int64_t blocks_;
  int64_t recent_blocks_;
  int64_t block_size_;
  int64_t window_ = 0;
  CacheType type_;
  std::vector<int32_t> recents_;  // [blocks] the place of its recent rows
  std::vector<int32_t> owners_;   // [recent_blocks] the block that has a place, -1: none
  std::vector<int64_t> offsets_;  // of each entry in memory_
  Memory memory_;
};

}  // namespace deepmnn
