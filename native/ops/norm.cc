#include "ops/ops.h"
#include "runtime/step.h"

namespace deepmnn {
namespace {

class RmsNorm : public Op {
 public:
  explicit RmsNorm(const OpSpec& spec) {
    spec.require_counts(1, 1, 1);
    x_ = spec.input(0);
    y_ = spec.output(0, x_.dim, x_.width);
    heads_ = spec.int_attr("heads", 1, x_.width);
    eps_ = spec.float_attr("eps");
    spec.require(x_.width % heads_ == 0, "a width of " + std::to_string(x_.width), "whole heads");
    weight_ = spec.vector(0, x_.width / heads_);
  }

  void run(Step& step) override {
    const float* x = step.f32(x_);
    float* y = step.f32(y_);
    const int64_t d = x_.width / heads_;
    for_rows(step, step.n(x_) * heads_, d,
             [&](int64_t row, int) { step.kernels.rms_norm(x + row * d, weight_, eps_, d, y + row * d); });
  }

 private:
  Buffer x_, y_;
  int64_t heads_;
  float eps_;
  const float* weight_;
};

class AddRmsNorm : public Op {
 public:
  explicit AddRmsNorm(const OpSpec& spec) {
    spec.require_counts(2, 2, 1);
    a_ = spec.input(0);
    b_ = spec.input(1, a_.dim, a_.width);
    sum_ = spec.output(0, a_.dim, a_.width);
    y_ = spec.output(1, a_.dim, a_.width);
    eps_ = spec.float_attr("eps");
    weight_ = spec.vector(0, a_.width);
  }

  void run(Step& step) override {
    const float *a = step.f32(a_), *b = step.f32(b_);
    float *sum = step.f32(sum_), *y = step.f32(y_);
    const int64_t d = a_.width;
    for_rows(step, step.n(a_), 3 * d, [&](int64_t row, int) {
      const int64_t at = row * d;
      step.kernels.add_rms_norm(a + at, b + at, weight_, eps_, d, sum + at, y + at);
    });
  }

 private:
  Buffer a_, b_, sum_, y_;
  float eps_;
  const float* weight_;
};

}  // namespace

OpPtr make_rms_norm(const OpSpec& spec) { return std::make_unique<RmsNorm>(spec); }
OpPtr make_add_rms_norm(const OpSpec& spec) { return std::make_unique<AddRmsNorm>(spec); }

}  // namespace deepmnn
