// One thread at a time, and forks: a child has only the thread that forked it. What another one was in the middle of
// stays so for ever, and its lock is never released.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

namespace deepmnn {

// A mutex (for std::lock_guard) that nobody gets in a child that was forked while another thread had it or waited for
// it.
class Turns {
 public:
  // Throws Error("request") in such a child.
  void lock();
  void unlock();

 private:
  std::mutex mutex_;
  std::atomic<uint64_t> users_{0};  // forks that led to this process << 32 | threads that have the mutex or wait for it
};

}  // namespace deepmnn
