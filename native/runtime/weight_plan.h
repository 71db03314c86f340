// Which weights stay in memory and which are read when they are needed, given a number of bytes for all of them.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/program.h"
#include "runtime/read_units.h"

namespace deepmnn {

// Experts of one size, which take turns in as many slots of the cache.
struct ExpertClass {
  int64_t room = 0;  // bytes of a slot
  int64_t units = 0;
  int64_t slots = 0;  // at most `units`
};

struct WeightPlan {
  bool mapped = false;        // everything fits: nothing is read by the model itself
  int64_t total_nbytes = 0;   // of all weights
  int64_t least_nbytes = 0;   // the fewest that a model can run with
  int64_t memory_nbytes = 0;  // what this plan takes: the five below, without `streamed`
  int64_t resident_nbytes = 0;
  int64_t streamed_nbytes = 0;  // dense weights that every step reads anew, by way of
  int64_t ring_nbytes = 0;
  int64_t cache_nbytes = 0;   // slots of experts
  int64_t table_nbytes = 0;   // room for rows of tables
  int64_t expert_nbytes = 0;  // of all experts

  std::vector<bool> resident;        // [units], of those needed always or dense
  std::vector<ExpertClass> classes;  // ascending by room
};

// Dense weights come before experts: each of their bytes is needed by every step. Throws Error("request") for fewer
// bytes than plan.least_nbytes; memory 0: as many as there are weights, so that all are mapped.
WeightPlan plan_weights(const Program& program, const ReadUnits& units, int64_t memory);

// Of a program with its draft part, if all of it fits; else without: a draft part that is read anew for every guess, or
// takes the room of other weights, is no gain, and checking guesses asks for more experts a step. `least_nbytes` is
// that of the main part.
WeightPlan plan_parts(Program& program, ReadUnits& units, int64_t memory);

}  // namespace deepmnn
