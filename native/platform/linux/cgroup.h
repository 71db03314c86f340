// What this process's control group leaves it: the group at the top of /sys/fs/cgroup, which in a container is its own.
// Version 1 and 2. root: where /sys lies.
#pragma once

#include <cstdint>
#include <string>

namespace deepmnn {

// Bytes the group may still use; INT64_MAX without a limit.
int64_t group_memory(const std::string& root);

// Whole processors' worth of time, at least 1; INT_MAX without a quota.
int group_processors(const std::string& root);

}  // namespace deepmnn
