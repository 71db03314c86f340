// Threads and the processors they run on.
#pragma once

#include <cstdint>
#include <vector>

namespace deepmnn {

// Processors this thread may run on, ascending, at least one.
std::vector<int> allowed_processors();

// Lets this thread run on these processors only. Where the system refuses, it runs where it did.
void run_on(const std::vector<int>& processors);

// The same until the scope ends. Allocates nothing.
class AffinityScope {
 public:
  explicit AffinityScope(const std::vector<int>& processors);
  ~AffinityScope();
  AffinityScope(const AffinityScope&) = delete;
  AffinityScope& operator=(const AffinityScope&) = delete;

 private:
  [[maybe_unused]] bool changed_ = false;
  [[maybe_unused]] uint64_t before_[16] = {};  // a bit for each processor
};

// The processor this thread runs on; -1 where the system does not say.
int current_processor();

// Lets faults of this thread reach the platform's handler (platform/files.h), though whoever started it blocks all
// signals. Once for each thread.
void receive_faults();

// Tells the processor that this thread looks at a variable again and again.
void pause_hint();

// How often fork() has returned as the child on the way from the first process to this one.
uint32_t fork_count();

}  // namespace deepmnn
