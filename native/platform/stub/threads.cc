#include "platform/threads.h"

#include "platform/ticks.h"

namespace deepmnn {

std::vector<int> allowed_processors() { return {0}; }

void run_on(const std::vector<int>&) {}

AffinityScope::AffinityScope(const std::vector<int>&) {}

AffinityScope::~AffinityScope() {}

int current_processor() { return -1; }

void receive_faults() {}

void pause_hint() {}

uint32_t fork_count() { return 0; }

bool has_steady_ticks() { return false; }

}  // namespace deepmnn
