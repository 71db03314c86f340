#include "platform/linux/cgroup.h"

#include <algorithm>
#include <climits>
#include <fstream>

#include "platform/linux/read.h"

namespace deepmnn {
namespace {

// Clean file pages count as used but go when memory is needed.
int64_t memory_left(const std::string& folder, const char* limit_file, const char* used_file, const char* files) {
  const int64_t limit = read_number(folder + limit_file), used = read_number(folder + used_file);
  if (limit == kNoNumber || used == kNoNumber) return INT64_MAX;
  const int64_t cached = read_field(folder + "memory.stat", files);
  return std::max<int64_t>(0, limit - used + (cached == kNoNumber ? 0 : cached));
}

}  // namespace

int64_t group_memory(const std::string& root) {
  const std::string v2 = root + "/sys/fs/cgroup/", v1 = v2 + "memory/";
  return std::min(memory_left(v2, "memory.max", "memory.current", "inactive_file"),
                  memory_left(v1, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"));
}

// cpu.max holds "quota period" in microseconds, or "max period".
int group_processors(const std::string& root) {
  std::ifstream file(root + "/sys/fs/cgroup/cpu.max");
  double quota = 0, period = 0;
  if (file >> quota >> period && quota > 0 && period > 0) return std::max(1, static_cast<int>(quota / period));
  return INT_MAX;
}

}  // namespace deepmnn
