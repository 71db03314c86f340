#include "ops/expert_groups.h"

#include "runtime/fail.h"

namespace deepmnn {

ExpertGroups group_by_expert(Step& step, const int32_t* indices, int64_t tokens, int64_t top_k, int64_t experts) {
  const int64_t n = tokens * top_k;
  if (n > INT32_MAX) fail_request("a step of " + std::to_string(n) + " choices of experts", "fewer tokens");
  Scratch& scratch = step.scratch;
  ExpertGroups groups{scratch.take<int32_t>(n),
                      scratch.take<int32_t>(n),
                      scratch.take<int32_t>(n),
                      scratch.take<int32_t>(experts),
                      scratch.take<int64_t>(experts + 1),
                      0,
                      n};
  int64_t* next = scratch.take<int64_t>(experts);  // first the counts, then where the next choice goes
  std::fill_n(next, experts, 0);
  for (int64_t i = 0; i < n; ++i) {
    if (indices[i] < 0 || indices[i] >= experts) {
      fail_artifact("program.bin: expert " + std::to_string(indices[i]) + " is chosen",
                    "less than " + std::to_string(experts));
    }
    ++next[indices[i]];
  }
  int64_t start = 0;
  for (int64_t expert = 0; expert < experts; ++expert) {
    const int64_t count = next[expert];
    next[expert] = start;
    if (count == 0) continue;
    groups.experts[groups.active] = static_cast<int32_t>(expert);
    groups.starts[groups.active++] = start;
    start += count;
  }
  groups.starts[groups.active] = n;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t at = next[indices[i]]++;
    groups.choices[at] = static_cast<int32_t>(i);
    groups.tokens[at] = static_cast<int32_t>(i / top_k);
    groups.place[i] = static_cast<int32_t>(at);
  }
  return groups;
}

ExpertTurns::ExpertTurns(Step& step, const ExpertGroups& groups, const uint32_t* ids, int64_t each)
    : step_(step),
      each_(each),
      ids_(step.scratch.take<uint32_t>(groups.active * each)),
      weights_(step.scratch.take<Weight>(groups.active * each)),
      turn_(step.scratch.take<int32_t>(groups.active)),
      left_(groups.active) {
  for (int64_t i = 0; i < groups.active; ++i) {
    std::copy_n(ids + groups.experts[i] * each, each, ids_ + i * each);
    turn_[i] = static_cast<int32_t>(i);
  }
}

bool ExpertTurns::next() {
  turn_ += n_;
  left_ -= n_;
  if (n_ == 0) {
    mark_ = step_.scratch.mark();
  } else if (left_ > 0) {
    step_.weights.unpin();
    step_.scratch.rewind(mark_);
  }
  n_ = left_ > 0 ? step_.weights.pin_some(ids_, each_, turn_, left_, weights_) : 0;
  return n_ > 0;
}

void combine_choices(Step& step, const float* parts, const int32_t* place, const float* weights, int64_t tokens,
                     int64_t top_k, int64_t width, const float* shared, float* y) {
  for_rows(step, tokens, (top_k + 2) * width, [&](int64_t token, int) {
    float* to = y + token * width;
    std::fill_n(to, width, 0.0f);
    for (int64_t j = 0; j < top_k; ++j) {
      const int64_t choice = token * top_k + j;
      step.kernels.axpy(weights[choice], parts + (place ? place[choice] : choice) * width, width, to);
    }
    if (shared) step.kernels.add(to, shared + token * width, width, to);
  });
}

}  // namespace deepmnn
