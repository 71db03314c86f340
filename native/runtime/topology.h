// The machine's memory nodes and the processors beside each: one node per socket, mostly.
#pragma once

#include <string>
#include <vector>

namespace deepmnn {

struct NumaNode {
  int id = 0;
  std::vector<int> processors;  // ascending
};

// Processors this thread may run on, ascending, at least one.
std::vector<int> allowed_processors();

// The numbers of a list as /sys writes them: "0-3,8" is 0 1 2 3 8. Stops at what is no list.
std::vector<int> parse_processors(const std::string& list);

// The nodes in the order of their ids with those of their processors that are in `allowed`. Nodes with none are left
// out (memory without processors, too); where the system does not tell, there is one node with all. root: where /sys
// lies.
std::vector<NumaNode> read_nodes(const std::vector<int>& allowed, const std::string& root = "");

// How many nodes the machine has, whatever this process may use; at least 1.
int count_nodes(const std::string& root = "");

}  // namespace deepmnn
