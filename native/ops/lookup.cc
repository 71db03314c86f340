#include <cmath>

#include "ops/ops.h"
#include "ops/routing.h"
#include "runtime/fail.h"
#include "runtime/step.h"

namespace deepmnn {

void look_up_experts(const float* table, int64_t row, int64_t k, int64_t experts, int32_t* indices) {
  for (int64_t i = 0; i < k; ++i) {
    const float found = table[row * k + i];
    if (!(found >= 0.0f && found < static_cast<float>(experts) && found == std::floor(found))) {
      fail_artifact("a table of experts has " + std::to_string(found) + " for token " + std::to_string(row),
                    "the number of an expert, below " + std::to_string(experts));
    }
    indices[i] = static_cast<int32_t>(found);
  }
}

namespace {

// The experts of a token's id.
class Lookup : public Op {
 public:
  explicit Lookup(const OpSpec& spec) {
    spec.require_counts(1, 1, 1);
    spec.require_graph_input(0, "ids");
    x_ = spec.int_input(0);
    k_ = spec.int_attr("top_k", 1, kMaxExtentAttr);
    experts_ = spec.int_attr("experts", 1, kMaxExtentAttr);
    y_ = spec.int_output(0, x_.dim, k_);
    spec.require(spec.weight_cols(0) % k_ == 0, "a table of " + std::to_string(spec.weight_cols(0)),
                 std::to_string(k_) + " for each token id");
    vocab_ = spec.weight_cols(0) / k_;
    table_ = spec.vector(0, vocab_ * k_);
  }

  void run(Step& step) override {
    const float* table = step.pin_vector(table_);
    const int32_t* ids = step.ints(x_);
    int32_t* y = step.i32(y_);
    for (int64_t i = 0; i < step.n(x_); ++i) {
      if (ids[i] >= vocab_) fail_artifact("a table of experts for " + std::to_string(vocab_) + " token ids", "all ids");
      look_up_experts(table, ids[i], k_, experts_, y + i * k_);
    }
  }

 private:
  Buffer x_, y_;
  int64_t k_, experts_, vocab_;
  WeightRef table_;
};

}  // namespace

OpPtr make_lookup(const OpSpec& spec) { return std::make_unique<Lookup>(spec); }

}  // namespace deepmnn
