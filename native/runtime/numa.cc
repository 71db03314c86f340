#include "runtime/numa.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#if defined(__linux__)
#include <sys/syscall.h>
#endif

#include "runtime/fail.h"

namespace deepmnn {
namespace {

// Of linux/mempolicy.h, which not every machine has.
constexpr int kPreferred = 1, kInterleave = 3, kMove = 2;
constexpr int kMostNodes = 1024;

uintptr_t page_up(const uint8_t* address) {
  static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  return (reinterpret_cast<uintptr_t>(address) + page - 1) / page * page;
}

// Sets the policy of the pages that begin in [begin, end). A library for one system call is not worth a dependency.
void bind_pages(const uint8_t* begin, const uint8_t* end, int policy, const std::vector<NumaNode>& nodes) {
  const uintptr_t first = page_up(begin), last = page_up(end);
  if (first >= last) return;
  int error = ENOSYS;
#if defined(SYS_mbind)
  constexpr int kBits = 8 * sizeof(unsigned long);
  unsigned long mask[kMostNodes / kBits] = {};
  for (const NumaNode& node : nodes) {
    if (node.id < kMostNodes) mask[node.id / kBits] |= 1ul << (node.id % kBits);
  }
  // The kernel takes one bit less than it is told.
  error = syscall(SYS_mbind, first, last - first, policy, mask, kMostNodes + 1ul, kMove) == 0 ? 0 : errno;
#endif
  if (error != 0) {
    fail_request(
        std::string("memory cannot be placed on a node (mbind: ") + std::strerror(error) + ")",
        "a kernel with NUMA and, in a container, the right to use it (docker: --cap-add SYS_NICE); or numa off");
  }
}

size_t current_node(const std::vector<NumaNode>& nodes) {
#if defined(__linux__)
  const int here = sched_getcpu();
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (std::binary_search(nodes[i].processors.begin(), nodes[i].processors.end(), here)) return i;
  }
#endif
  return 0;
}

#if defined(__linux__)
bool set_processors(const std::vector<int>& processors) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int processor : processors) {
    if (processor < CPU_SETSIZE) CPU_SET(processor, &set);
  }
  return sched_setaffinity(0, sizeof set, &set) == 0;
}
#endif

}  // namespace

Numa::Numa(const std::string& mode, const std::string& root) {
  if (mode != "off" && mode != "distribute" && mode != "isolate") {
    fail_request("numa " + mode, "off, distribute or isolate");
  }
  if (mode == "off") return;
  std::vector<NumaNode> nodes = read_nodes(allowed_processors(), root);
  // A process that was given one node of several isolates itself on that one: the file's pages may lie elsewhere.
  if (nodes.size() < 2 && (mode == "distribute" || count_nodes(root) < 2)) return;
  if (mode == "isolate") nodes = {nodes[current_node(nodes)]};
  mode_ = mode == "isolate" ? "isolate" : "distribute";
  nodes_ = std::move(nodes);
}

std::vector<int> Numa::processors() const {
  std::vector<int> all;
  for (const NumaNode& node : nodes_) all.insert(all.end(), node.processors.begin(), node.processors.end());
  return all;
}

size_t Numa::node_of(int worker, int workers) const {
  int64_t left = static_cast<int64_t>(processors().size()) * worker / workers;
  for (size_t node = 0; node < nodes_.size(); ++node) {
    left -= static_cast<int64_t>(nodes_[node].processors.size());
    if (left < 0) return node;
  }
  return nodes_.size() - 1;
}

int Numa::first_worker(size_t node, int workers) const {
  int worker = 0;
  while (worker < workers && node_of(worker, workers) < node) ++worker;
  return worker;
}

void Numa::pin([[maybe_unused]] int worker, [[maybe_unused]] int workers) const {
#if defined(__linux__)
  if (active()) set_processors(nodes_[node_of(worker, workers)].processors);
#endif
}

void Numa::place(uint8_t* begin, uint8_t* end, size_t node) const {
  if (active()) bind_pages(begin, end, kPreferred, {nodes_[node]});
}

void Numa::interleave(uint8_t* begin, uint8_t* end) const {
  if (active()) bind_pages(begin, end, kInterleave, nodes_);
}

NumaScope::NumaScope([[maybe_unused]] const Numa& numa, [[maybe_unused]] int workers) {
#if defined(__linux__)
  if (!numa.active() || sched_getaffinity(0, sizeof before_, &before_) != 0) return;
  pinned_ = set_processors(numa.nodes()[numa.node_of(0, workers)].processors);
#endif
}

NumaScope::~NumaScope() {
#if defined(__linux__)
  if (pinned_) sched_setaffinity(0, sizeof before_, &before_);
#endif
}

std::vector<int> nodes_of_pages([[maybe_unused]] const uint8_t* begin, [[maybe_unused]] const uint8_t* end) {
  std::vector<int> nodes;
#if defined(SYS_move_pages)
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  std::vector<void*> pages;
  for (uintptr_t at = reinterpret_cast<uintptr_t>(begin) / page * page; at < reinterpret_cast<uintptr_t>(end);
       at += page)
    pages.push_back(reinterpret_cast<void*>(at));
  nodes.resize(pages.size());
  if (syscall(SYS_move_pages, 0, pages.size(), pages.data(), nullptr, nodes.data(), 0) != 0) nodes.clear();
#endif
  return nodes;
}

}  // namespace deepmnn
