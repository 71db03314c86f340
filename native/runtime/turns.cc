#include "runtime/turns.h"

#include "platform/threads.h"
#include "runtime/fail.h"

namespace deepmnn {

void Turns::lock() {
  const uint64_t forks = uint64_t{fork_count()} << 32;
  uint64_t users = users_.load(std::memory_order_relaxed), more;
  do {
    const uint64_t count = users & UINT32_MAX;
    if (count > 0 && users - count != forks) {
      fail_request("this process was forked while another thread ran the model",
                   "a model that no thread is running when the process forks; load it again here");
    }
    more = forks | (count + 1);
  } while (!users_.compare_exchange_weak(users, more, std::memory_order_relaxed));
  mutex_.lock();
}

void Turns::unlock() {
  mutex_.unlock();
  users_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace deepmnn
