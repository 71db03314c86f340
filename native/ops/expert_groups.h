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

// The weights of the chosen experts, and of no others: expert e has ids[e * each .. (e + 1) * each); those of
// groups.experts[i] come at [i * each].
const Weight* pin_experts(Step& step, const ExpertGroups& groups, const uint32_t* ids, int64_t each);

// y [tokens, width] = sum over j of weights[token, j] * parts[place(token, j)] (+ shared [tokens, width]), in the order
// of choice.
void combine_choices(Step& step, const float* parts, const int32_t* place, const float* weights, int64_t tokens,
                     int64_t top_k, int64_t width, const float* shared, float* y);

}  // namespace deepmnn
