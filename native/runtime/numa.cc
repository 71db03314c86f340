#include "runtime/numa.h"

#include <algorithm>

#include "platform/memory.h"
#include "runtime/fail.h"

namespace deepmnn {
namespace {

size_t current_node(const std::vector<NumaNode>& nodes) {
  const int here = current_processor();
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (std::binary_search(nodes[i].processors.begin(), nodes[i].processors.end(), here)) return i;
  }
  return 0;
}

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

void Numa::pin(int worker, int workers) const {
  if (active()) run_on(nodes_[node_of(worker, workers)].processors);
}

void Numa::place(uint8_t* begin, uint8_t* end, size_t node) const {
  if (active()) place_pages(begin, end, Placement::prefer, {nodes_[node].id});
}

void Numa::interleave(uint8_t* begin, uint8_t* end) const {
  if (!active()) return;
  std::vector<int> ids;
  for (const NumaNode& node : nodes_) ids.push_back(node.id);
  place_pages(begin, end, Placement::interleave, ids);
}

NumaScope::NumaScope(const Numa& numa, int workers) {
  if (numa.active()) pinned_.emplace(numa.nodes()[numa.node_of(0, workers)].processors);
}

}  // namespace deepmnn
