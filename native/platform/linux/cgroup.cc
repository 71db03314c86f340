#include "platform/linux/cgroup.h"

#include <algorithm>
#include <climits>
#include <fstream>
#include <sstream>
#include <vector>

#include "platform/linux/read.h"

namespace deepmnn {
namespace {

constexpr int64_t kUnlimited = int64_t{1} << 62;  // version 1 says "no limit" with a number beyond this one

// A tree of groups: version 2 (no controller), or a controller of version 1. places: where it lies when
// /proc/self/mountinfo does not tell.
struct Hierarchy {
  const char* controller;
  std::vector<const char*> places;
};
const Hierarchy kUnified{"", {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}};
const Hierarchy kCpu{"cpu", {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpuacct,cpu"}};
const Hierarchy kMemory{"memory", {"/sys/fs/cgroup/memory"}};

// Where a hierarchy can be seen, and which group of it is there: in a container that may be the container's own.
struct Mount {
  std::string place;
  std::string group = "/";
};

bool lists(const std::string& names, const std::string& name) {
  return ("," + names + ",").find("," + name + ",") != std::string::npos;
}

// mountinfo writes blanks as \040.
std::string unescaped(const std::string& text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool code = text[i] == '\\' && text.find_first_not_of("01234567", i + 1) >= i + 4 && i + 3 < text.size();
    plain += code ? static_cast<char>(std::stoi(text.substr(i + 1, 3), nullptr, 8)) : text[i];
    if (code) i += 3;
  }
  return plain;
}

// Lines "id parent device group place options [more ...] - type source options".
std::vector<Mount> mounts_of(const Hierarchy& hierarchy, const std::string& root) {
  const std::string controller = hierarchy.controller;
  std::vector<Mount> mounts;
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t split = line.find(" - ");
    if (split == std::string::npos) continue;
    std::istringstream before(line.substr(0, split)), after(line.substr(split + 3));
    std::string skipped, group, place, type, source, options;
    before >> skipped >> skipped >> skipped >> group >> place;
    after >> type >> source >> options;
    const bool ours = controller.empty() ? type == "cgroup2" : type == "cgroup" && lists(options, controller);
    if (ours) mounts.push_back({unescaped(place), unescaped(group)});
  }
  if (mounts.empty()) {
    for (const char* place : hierarchy.places) mounts.push_back({place});
  }
  return mounts;
}

// This process's group: of the line "number:controllers:group". The root group where there is none.
std::string group_of(const Hierarchy& hierarchy, const std::string& root) {
  const std::string controller = hierarchy.controller;
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1);
    if (controller.empty() ? names.empty() : lists(names, controller)) return line.substr(second + 1);
  }
  return "/";
}

// The group's path below the mount: "" for the one that is mounted, and for one that cannot be seen from here.
std::string below(std::string group, std::string mounted) {
  while (!group.empty() && group.back() == '/') group.pop_back();
  while (!mounted.empty() && mounted.back() == '/') mounted.pop_back();
  if (group.compare(0, mounted.size() + 1, mounted + "/") != 0) return "";
  group.erase(0, mounted.size());
  return (group + "/").find("/../") == std::string::npos ? group : "";
}

// The folders of this process's group and of those above it. Some may not exist: in a container /proc/self/cgroup may
// still have the path that the group has outside.
std::vector<std::string> folders_of(const Hierarchy& hierarchy, const std::string& root) {
  const std::string group = group_of(hierarchy, root);
  std::vector<std::string> folders;
  for (const Mount& mount : mounts_of(hierarchy, root)) {
    std::string path = below(group, mount.group);
    for (; !path.empty(); path.erase(path.rfind('/'))) folders.push_back(root + mount.place + path + "/");
    folders.push_back(root + mount.place + "/");
  }
  return folders;
}

// Clean file pages count as used but go when memory is needed.
int64_t memory_left(int64_t limit, const std::string& folder, const char* used_file, const char* clean_files) {
  if (limit >= kUnlimited) return INT64_MAX;
  const int64_t used = read_number(folder + used_file), clean = read_field(folder + "memory.stat", clean_files);
  return std::max<int64_t>(0, limit - (used == kNoNumber ? 0 : used) + (clean == kNoNumber ? 0 : clean));
}

int processors(int64_t quota, int64_t period) {
  if (quota == kNoNumber || period == kNoNumber || quota == 0 || period == 0) return INT_MAX;
  return static_cast<int>(std::clamp<int64_t>(quota / period, 1, INT_MAX));
}

}  // namespace

int64_t group_memory(const std::string& root) {
  int64_t left = INT64_MAX;
  for (const std::string& folder : folders_of(kUnified, root)) {
    // Beyond `high` the kernel makes the group wait for pages to be freed, until it hardly moves.
    const int64_t limit = std::min(read_number(folder + "memory.max"), read_number(folder + "memory.high"));
    left = std::min(left, memory_left(limit, folder, "memory.current", "inactive_file"));
  }
  for (const std::string& folder : folders_of(kMemory, root)) {
    // The second one is of groups above, which a container may not see.
    const int64_t limit = std::min(read_number(folder + "memory.limit_in_bytes"),
                                   read_field(folder + "memory.stat", "hierarchical_memory_limit"));
    left = std::min(left, memory_left(limit, folder, "memory.usage_in_bytes", "total_inactive_file"));
  }
  return left;
}

// Both in microseconds. A quota without its period is none: no kernel writes that.
int group_processors(const std::string& root) {
  int most = INT_MAX;
  for (const std::string& folder : folders_of(kUnified, root)) {
    std::istringstream line(read_line(folder + "cpu.max"));  // "quota period", or "max period"
    std::string quota, period;
    line >> quota >> period;
    most = std::min(most, processors(parse_number(quota), parse_number(period)));
  }
  for (const std::string& folder : folders_of(kCpu, root)) {
    const int64_t quota = read_number(folder + "cpu.cfs_quota_us"), period = read_number(folder + "cpu.cfs_period_us");
    most = std::min(most, processors(quota, period));
  }
  return most;
}

}  // namespace deepmnn
