// A step's choices of experts, sorted by expert. A choice is (token, j): number token * top_k + j.
#pragma once

#include <cstdint>

#include "runtime/step.h"

namespace deepmnn {

struct ExpertGroups {
  int32_t* choices;  // [n] choice numbers, expert by expert, in order of choice inside
  int32_t* tokens;   // [n] the token of each
  int32_t* place;    // [n] where each choice number stands in `choices`
  int32_t* experts;  // [active] experts chosen by anybody
  int64_t* starts;   // [active + 1] their parts of `choices`
  int64_t active;
  int64_t n;

  int64_t size(int64_t i) const { return starts[i + 1] - starts[i]; }
};

// Counting sort of indices [tokens, top_k], in the op's scratch. Throws Error("artifact") for an index that is no
// expert.
ExpertGroups group_by_expert(Step& step, const int32_t* indices, int64_t tokens, int64_t top_k, int64_t experts);

// The chosen experts, some of them at a time: those whose weights are in memory. Expert e has the weights
// ids[e * each .. (e + 1) * each).
class ExpertTurns {
 public:
  ExpertTurns(Step& step, const ExpertGroups& groups, const uint32_t* ids, int64_t each);

  // Pins the weights of the next ones, and unpins those before; false when all have had their turn. Scratch that was
  // taken since is free again.
  bool next();
  int64_t n() const { return n_; }
  int64_t group(int64_t i) const { return turn_[i]; }  // which group has a turn, ascending, i < n()
  const Weight& weight(int64_t i, int64_t which) const { return weights_[turn_[i] * each_ + which]; }

 private:
  Step& step_;
  const int64_t each_;
  uint32_t* ids_;    // [active, each]
  Weight* weights_;  // [active, each]
  int32_t* turn_;    // groups: those of this turn, then those that are left
  int64_t n_ = 0, left_;
  Scratch::Mark mark_;
};

// y [tokens, width] = sum over j of weights[token, j] * parts[place(token, j)] (+ shared [tokens, width]), in the order
// of choice.
void combine_choices(Step& step, const float* parts, const int32_t* place, const float* weights, int64_t tokens,
                     int64_t top_k, int64_t width, const float* shared, float* y);

}  // namespace deepmnn
