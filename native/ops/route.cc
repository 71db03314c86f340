#include <algorithm>

#include "ops/ops.h"
#include "ops/routing.h"
#include "runtime/fail.h"
#include "runtime/step.h"

namespace deepmnn {
namespace {

// How logits become scores.
class Scoring {
 public:
  Scoring() = default;
  explicit Scoring(const OpSpec& spec) : name_(spec.string_attr("scoring")) {
    spec.require(name_ == "softmax" || name_ == "sigmoid" || name_ == "sqrtsoftplus", "scoring " + name_,
                 "softmax, sigmoid or sqrtsoftplus");
  }

  void scores(const Step& step, const float* x, int64_t n, float* y) const {
    if (name_ == "softmax") return step.kernels.softmax(x, n, y);
    if (name_ == "sigmoid") return step.kernels.sigmoid(x, n, y);
    std::transform(x, x + n, y, sqrt_softplus);
  }

 private:
  std::string name_;
};

// Router logits to the chosen experts and their weights: the whole chain of plain routing ops, token by token.
class Route : public Op {
 public:
  explicit Route(const OpSpec& spec) {
    spec.require(spec.inputs() == 1 && spec.outputs() == 2 && spec.weights() <= 1, "its inputs, outputs and weights",
                 "1 input, 2 outputs, 0 or 1 weights");
    x_ = spec.input(0);
    const int64_t k = spec.int_attr("top_k", 1, x_.width);
    indices_ = spec.int_output(0, x_.dim, k);
    weights_ = spec.output(1, x_.dim, k);
    if (spec.weights() == 1) bias_ = spec.vector(0, x_.width);
    scoring_ = Scoring(spec);
    if (spec.int_attr("n_group", 1, x_.width) > 1) limit_ = GroupLimit(spec, x_.width);
    normalize_ = spec.int_attr("normalize", 0, 1) != 0;
    if (normalize_) eps_ = spec.float_attr("eps");
    factor_ = spec.float_attr("factor");
  }

  void run(Step& step) override {
    const int64_t workers = step.pool.size();
    float* floats = step.scratch.take<float>(workers * work_floats());
    const float* bias = step.pin_vector(bias_);
    int32_t* groups = step.scratch.take<int32_t>(workers * limit_.kept());
    for_rows(step, step.n(x_), 8 * x_.width, [&](int64_t row, int worker) {
      route(step, row, bias, floats + worker * work_floats(), groups + worker * limit_.kept());
    });
  }

 private:
  int64_t work_floats() const { return 3 * x_.width + limit_.groups(); }

  void route(const Step& step, int64_t row, const float* bias, float* work, int32_t* groups) const {
    const int64_t experts = x_.width, k = weights_.width;
    const float* x = step.f32(x_) + row * experts;
    int32_t* indices = step.i32(indices_) + row * k;
    float* weights = step.f32(weights_) + row * k;
    float *scores = work, *choice = work + experts, *limited = work + 2 * experts;
    scoring_.scores(step, x, experts, scores);
    const float* ranked = scores;
    if (bias) {
      step.kernels.add(scores, bias, experts, choice);
      ranked = choice;
    }
    if (limit_.groups() > 1) {
      limit_.apply(ranked, work + 3 * experts, groups, limited);
      ranked = limited;
    }
    top_k(ranked, experts, k, indices);
    for (int64_t i = 0; i < k; ++i) weights[i] = scores[indices[i]];
    if (normalize_) normalize(weights, k, eps_, weights);
    for (int64_t i = 0; i < k; ++i) weights[i] *= factor_;
  }

  Buffer x_, indices_, weights_;
  WeightRef bias_;
  Scoring scoring_;
  bool normalize_;
  GroupLimit limit_;
  float eps_ = 0.0f, factor_;
};

// The same where a token's id chooses, and its scores weigh.
class HashRoute : public Op {
 public:
  explicit HashRoute(const OpSpec& spec) {
    spec.require_counts(2, 2, 1);
    x_ = spec.input(0, Dim::tokens, spec.int_attr("experts", 1, kMaxExtentAttr));
    spec.require_graph_input(1, "ids");
    const int64_t k = spec.int_attr("top_k", 1, x_.width);
    indices_ = spec.int_output(0, x_.dim, k);
    weights_ = spec.output(1, x_.dim, k);
    spec.require(spec.weight_cols(0) % k == 0, "a table of " + std::to_string(spec.weight_cols(0)),
                 std::to_string(k) + " for each token id");
    vocab_ = spec.weight_cols(0) / k;
    table_ = spec.vector(0, vocab_ * k);
    scoring_ = Scoring(spec);
    normalize_ = spec.int_attr("normalize", 0, 1) != 0;
    eps_ = spec.float_attr("eps");
    factor_ = spec.float_attr("factor");
  }

  void run(Step& step) override {
    const float* table = step.pin_vector(table_);
    const int64_t experts = x_.width, k = weights_.width;
    float* rooms = step.scratch.take<float>(step.pool.size() * experts);
    for (int64_t row = 0; row < step.n(x_); ++row) {
      const int32_t id = step.batch.ids[row];
      if (id >= vocab_) fail_artifact("a table of experts for " + std::to_string(vocab_) + " token ids", "all ids");
      look_up_experts(table, id, k, experts, step.i32(indices_) + row * k);
    }
    for_rows(step, step.n(x_), 8 * experts, [&](int64_t row, int worker) {
      float *scores = rooms + worker * experts, *weights = step.f32(weights_) + row * k;
      const int32_t* indices = step.i32(indices_) + row * k;
      scoring_.scores(step, step.f32(x_) + row * experts, experts, scores);
      for (int64_t i = 0; i < k; ++i) weights[i] = scores[indices[i]];
      if (normalize_) normalize(weights, k, eps_, weights);
      for (int64_t i = 0; i < k; ++i) weights[i] *= factor_;
    });
  }

 private:
  Buffer x_, indices_, weights_;
  WeightRef table_;
  Scoring scoring_;
  bool normalize_;
  int64_t vocab_;
  float eps_, factor_;
};

}  // namespace

OpPtr make_hash_route(const OpSpec& spec) { return std::make_unique<HashRoute>(spec); }
OpPtr make_route(const OpSpec& spec) { return std::make_unique<Route>(spec); }

}  // namespace deepmnn
