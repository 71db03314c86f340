#include "platform/topology.h"

#include <algorithm>
#include <set>
#include <sstream>

#include "platform/linux/cgroup.h"
#include "platform/linux/read.h"

namespace deepmnn {
namespace {

const char* const kNodes = "/sys/devices/system/node/";
constexpr int kMost = 1 << 16;  // processors: a longer range is damage

// The numbers of a list as /sys writes them: "0-3,8" is 0 1 2 3 8. Stops at what is no list.
std::vector<int> parse_list(const std::string& list) {
  std::vector<int> numbers;
  std::istringstream text(list);
  int first = 0;
  while (text >> first) {
    int last = first;
    if (text.peek() == '-') {
      text.get();
      if (!(text >> last)) break;
    }
    if (first < 0 || last < first || last >= kMost) break;
    for (int number = first; number <= last; ++number) numbers.push_back(number);
    if (text.peek() != ',') break;
    text.get();
  }
  return numbers;
}

// The hardware threads of a core share this line.
std::string core_of(int processor, const std::string& root) {
  const std::string name = "cpu" + std::to_string(processor);
  const std::string siblings = read_line(root + "/sys/devices/system/cpu/" + name + "/topology/thread_siblings_list");
  return siblings.empty() ? name : siblings;
}

}  // namespace

std::vector<NumaNode> read_nodes(const std::vector<int>& allowed, const std::string& root) {
  const std::string folder = root + kNodes;
  std::vector<NumaNode> nodes;
  for (int id : parse_list(read_line(folder + "online"))) {
    NumaNode node;
    node.id = id;
    for (int processor : parse_list(read_line(folder + "node" + std::to_string(id) + "/cpulist"))) {
      if (std::binary_search(allowed.begin(), allowed.end(), processor)) node.processors.push_back(processor);
    }
    if (!node.processors.empty()) nodes.push_back(node);
  }
  if (nodes.empty()) nodes.push_back({0, allowed});
  return nodes;
}

int count_nodes(const std::string& root) {
  return std::max(1, static_cast<int>(parse_list(read_line(root + kNodes + "online")).size()));
}

int count_cores(const std::vector<int>& processors, const std::string& root) {
  std::set<std::string> cores;
  for (int processor : processors) cores.insert(core_of(processor, root));
  return static_cast<int>(cores.size());
}

int quota_processors(const std::string& root) { return group_processors(root); }

}  // namespace deepmnn
