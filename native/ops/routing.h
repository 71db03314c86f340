// Choosing experts: the pieces that the plain ops and the fused route share. One token's scores at a time.
#pragma once

#include <cstdint>

#include "runtime/op.h"

namespace deepmnn {

// The best k of scores [n], best first, ties to the lower index. k <= n.
void top_k(const float* scores, int64_t n, int64_t k, int32_t* indices);

// Row `row` of a table of k experts each; throws Error("artifact") for what is no expert (lookup.cc).
void look_up_experts(const float* table, int64_t row, int64_t k, int64_t experts, int32_t* indices);

// The square root of ln(1 + e^x) (elementwise.cc).
float sqrt_softplus(float x);

// x / (sum x + eps).
void normalize(const float* x, int64_t n, float eps, float* y);

// Groups of experts, of which only the best may be chosen (DeepSeek-V2 and V3).
class GroupLimit {
 public:
  GroupLimit() = default;
  GroupLimit(const OpSpec& spec, int64_t experts);  // attributes n_group, topk_group, group_score

  int64_t groups() const { return groups_; }
  // y = scores, -inf outside the chosen groups. work: floats [groups], chosen: [kept].
  void apply(const float* scores, float* work, int32_t* chosen, float* y) const;
  int64_t kept() const { return kept_; }

 private:
  float group_score(const float* scores) const;

  int64_t groups_ = 1;
  int64_t kept_ = 1;
  int64_t size_ = 0;  // experts per group
  bool top2_sum_ = false;
};

}  // namespace deepmnn
