#include "platform/threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <thread>

#include "platform/linux/read.h"
#include "platform/ticks.h"

namespace deepmnn {
namespace {

std::atomic<uint32_t> forks{0};
[[maybe_unused]] const int forks_counted = pthread_atfork(nullptr, nullptr, [] { ++forks; });

bool set_processors(const std::vector<int>& processors) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int processor : processors) {
    if (processor < CPU_SETSIZE) CPU_SET(processor, &set);
  }
  return sched_setaffinity(0, sizeof set, &set) == 0;
}

}  // namespace

std::vector<int> allowed_processors() {
  std::vector<int> allowed;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    for (int processor = 0; processor < CPU_SETSIZE; ++processor) {
      if (CPU_ISSET(processor, &set)) allowed.push_back(processor);
    }
  }
  if (allowed.empty()) {
    const int count = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    for (int processor = 0; processor < count; ++processor) allowed.push_back(processor);
  }
  return allowed;
}

void run_on(const std::vector<int>& processors) { set_processors(processors); }

AffinityScope::AffinityScope(const std::vector<int>& processors) {
  cpu_set_t set;
  static_assert(sizeof set <= sizeof before_);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return;
  std::memcpy(before_, &set, sizeof set);
  changed_ = set_processors(processors);
}

AffinityScope::~AffinityScope() {
  if (!changed_) return;
  cpu_set_t set;
  std::memcpy(&set, before_, sizeof set);
  sched_setaffinity(0, sizeof set, &set);
}

int current_processor() { return sched_getcpu(); }

void receive_faults() {
  thread_local bool done = false;
  if (done) return;
  sigset_t faults;
  sigemptyset(&faults);
  sigaddset(&faults, SIGBUS);
  done = pthread_sigmask(SIG_UNBLOCK, &faults, nullptr) == 0;
}

void pause_hint() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The kernel takes the counter for its own clock only when that is so.
bool has_steady_ticks() {
  const std::string source = read_line("/sys/devices/system/clocksource/clocksource0/current_clocksource");
  return source == "tsc" || source == "arch_sys_counter";
}

uint32_t fork_count() { return forks.load(std::memory_order_relaxed); }

}  // namespace deepmnn
