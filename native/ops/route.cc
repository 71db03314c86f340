#include "ops/ops.h"
#include "ops/routing.h"
#include "runtime/step.h"

namespace deepmnn {
namespace {

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
    const std::string& scoring = spec.string_attr("scoring");
    spec.require(scoring == "softmax" || scoring == "sigmoid", "scoring " + scoring, "softmax or sigmoid");
    softmax_ = scoring == "softmax";
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
    (softmax_ ? step.kernels.softmax : step.kernels.sigmoid)(x, experts, scores);
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
  bool softmax_, normalize_;
  GroupLimit limit_;
  float eps_ = 0.0f, factor_;
};

}  // namespace

OpPtr make_route(const OpSpec& spec) { return std::make_unique<Route>(spec); }

}  // namespace deepmnn
