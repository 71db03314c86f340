// The machine: processors, the cores behind them, the memory nodes beside them (one per socket, mostly), and how much
// of it the control group gives. root: where /sys lies, for tests.
#pragma once

#include <string>
#include <vector>

namespace deepmnn {

struct NumaNode {
  int id = 0;
  std::vector<int> processors;  // ascending
};

// The nodes in the order of their ids with those of their processors that are in `allowed` (ascending). Nodes with none
// are left out (memory without processors, too); where the system does not tell, there is one node with all.
std::vector<NumaNode> read_nodes(const std::vector<int>& allowed, const std::string& root = "");

// How many nodes the machine has, whatever this process may use; at least 1.
int count_nodes(const std::string& root = "");

// Physical cores behind these processors.
int count_cores(const std::vector<int>& processors, const std::string& root = "");

// Whole processors' worth of time that the control group gives, at least 1; INT_MAX without a quota.
int quota_processors(const std::string& root = "");

}  // namespace deepmnn
