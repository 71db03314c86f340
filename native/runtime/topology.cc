#include "runtime/topology.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <thread>

namespace deepmnn {
namespace {

const char* const kNodes = "/sys/devices/system/node/";
constexpr int kMost = 1 << 16;  // processors: a longer range is damage

std::string read_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

}  // namespace

std::vector<int> allowed_processors() {
  std::vector<int> allowed;
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    for (int processor = 0; processor < CPU_SETSIZE; ++processor) {
      if (CPU_ISSET(processor, &set)) allowed.push_back(processor);
    }
  }
#endif
  if (allowed.empty()) {
    const int count = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    for (int processor = 0; processor < count; ++processor) allowed.push_back(processor);
  }
  return allowed;
}

std::vector<int> parse_processors(const std::string& list) {
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

int count_nodes(const std::string& root) {
  return std::max(1, static_cast<int>(parse_processors(read_line(root + kNodes + "online")).size()));
}

std::vector<NumaNode> read_nodes(const std::vector<int>& allowed, const std::string& root) {
  const std::string folder = root + kNodes;
  std::vector<NumaNode> nodes;
  for (int id : parse_processors(read_line(folder + "online"))) {
    NumaNode node;
    node.id = id;
    for (int processor : parse_processors(read_line(folder + "node" + std::to_string(id) + "/cpulist"))) {
      if (std::binary_search(allowed.begin(), allowed.end(), processor)) node.processors.push_back(processor);
    }
    if (!node.processors.empty()) nodes.push_back(node);
  }
  if (nodes.empty()) nodes.push_back({0, allowed});
  return nodes;
}

}  // namespace deepmnn
