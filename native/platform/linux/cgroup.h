// What control groups leave this process, version 1, 2 or both: the group that /proc/self/cgroup names and each one
// above it that can be seen, where the tightest limit holds. root: where /proc and /sys lie.
#pragma once

#include <cstdint>
#include <string>

namespace deepmnn {

// Bytes the groups may still use; INT64_MAX without a limit.
int64_t group_memory(const std::string& root);

// Whole processors' worth of time, at least 1; INT_MAX without a quota. A part of a processor is rounded down, as
// Rust's available_parallelism does and Go and the JVM do not: a thread for it would be stopped for the rest of each
// period, and every step waits for its slowest thread.
int group_processors(const std::string& root);

}  // namespace deepmnn
