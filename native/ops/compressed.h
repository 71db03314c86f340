// Entries that stand for windows of tokens (docs/ops.md, compress).
#pragma once

#include <cstdint>

namespace deepmnn {

struct EntryShape {
  int64_t ratio = 1;         // tokens of a window
  int64_t width = 0;         // of an entry
  bool overlapping = false;  // an entry takes the first halves of the window before, too

  int64_t row_width() const { return overlapping ? 2 * width : width; }
  int64_t windows() const { return overlapping ? 2 : 1; }  // that an entry is made of
  int64_t rows() const { return windows() * ratio; }
};

// The entry of one window. kv, gate: the rows [row_width] of the window's tokens, before them (overlapping) those of
// the window before, null for the first window. bias [ratio, row_width]. room: 2 * width floats.
void compress_window(const EntryShape& shape, const float* const* kv, const float* const* gate, const float* bias,
                     float* room, float* entry);

}  // namespace deepmnn
