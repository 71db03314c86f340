// Pages of mapped files that cannot be read: the file was cut, or its disk failed. The kernel answers with SIGBUS,
// which ends a process. In a range that is watched they read as zeros instead, and the range is marked.
#pragma once

#include <atomic>
#include <cstdint>

namespace deepmnn {

// An entry of the table that the signal's handler looks into.
struct WatchedRange {
  std::atomic<uintptr_t> begin{0}, end{0};  // begin 0: nothing is watched
  std::atomic<bool> damaged{false};
  std::atomic<uintptr_t> fault{0};  // the last address that could not be read, once it is damaged
  std::atomic<bool> taken{true};
  WatchedRange* next = nullptr;
};

// Watches whole pages from `begin` on that hold nbytes. The first call installs the handler, which hands on what is
// none of its business to the one that was there before. Locks nothing, for a fork may come at any time.
WatchedRange* watch_range(const uint8_t* begin, uint64_t nbytes);

// Before the range is unmapped.
void unwatch_range(WatchedRange* range);

}  // namespace deepmnn
