// Where a program decides which routed weights it reads: the instructions from the rows that experts read to their
// indices.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "runtime/program.h"

namespace deepmnn {

// For an instruction with routed weights.
struct RoutingSlice {
  size_t reader = 0;                 // that instruction
  size_t decider = 0;                // the one that writes its indices
  std::vector<size_t> instructions;  // in order, the decider last: they make the indices of the reader's first input;
                                     // empty where other values are needed as well
};

// Of all instructions with routed weights, in order; none for those whose indices come from outside.
std::vector<RoutingSlice> routing_slices(const Program& program);

// How many of an instruction's routed weights belong to one expert: they are read together.
size_t weights_per_expert(const Instruction& instruction);

}  // namespace deepmnn
