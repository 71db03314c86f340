// Threads and pages on a machine with several memory nodes (docs/numa.md). Off, or with one node, nothing is done.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "platform/threads.h"
#include "platform/topology.h"

namespace deepmnn {

class Numa {
 public:
  // mode "off"; "distribute": all nodes; "isolate": the node this thread runs on. root: where /sys lies, for tests.
  // Throws Error("request") for another mode.
  Numa(const std::string& mode, const std::string& root);

  bool active() const { return !nodes_.empty(); }
  const char* mode() const { return mode_; }  // that is in force: "off" on a machine with one node
  const std::vector<NumaNode>& nodes() const { return nodes_; }
  std::vector<int> processors() const;  // of all nodes in use

  // Index of the node of a worker: workers in order fill the nodes in order, each by its share of the processors.
  size_t node_of(int worker, int workers) const;
  // The first worker of a node, `workers` for the node after the last one.
  int first_worker(size_t node, int workers) const;

  // Lets this thread run on its node's processors only. Where the system refuses, it runs where it did.
  void pin(int worker, int workers) const;

  // Asks for the pages that begin in [begin, end) to lie on a node, or on all nodes in turn. Throws Error("request")
  // when the system cannot.
  void place(uint8_t* begin, uint8_t* end, size_t node) const;
  void interleave(uint8_t* begin, uint8_t* end) const;

 private:
  const char* mode_ = "off";
  std::vector<NumaNode> nodes_;
};

// Pins the thread that calls a step, as worker 0, and lets it go again.
class NumaScope {
 public:
  NumaScope(const Numa& numa, int workers);

 private:
  std::optional<AffinityScope> pinned_;
};

}  // namespace deepmnn
