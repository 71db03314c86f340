// Register tiles: rows dealt out to them, and code for each number of rows.
#pragma once

#include <cstdint>

namespace deepmnn::DEEPMNN_NS {

// n rows in as few tiles of at most kMost as there can be, dealt out evenly. The division takes as long as a third of a
// group of columns: it is done once.
template <int kMost>
struct EvenTiles {
  int64_t count, least, larger;

  explicit EvenTiles(int64_t n) : count((n + kMost - 1) / kMost), least(n ? n / count : 0), larger(n ? n % count : 0) {}
  int64_t size(int64_t tile) const { return least + (tile < larger); }
  int64_t first(int64_t tile) const { return tile * least + (tile < larger ? tile : larger); }
};

template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

// Calls function(Count<n>{}) for n in kLeast .. kMost.
template <int kLeast, int kMost, class Function>
DEEPMNN_INLINE void with_count(int64_t n, Function&& function) {
  if constexpr (kMost > kLeast) {
    if (n < kMost) return with_count<kLeast, kMost - 1>(n, function);
  }
  function(Count<kMost>{});
}

}  // namespace deepmnn::DEEPMNN_NS
