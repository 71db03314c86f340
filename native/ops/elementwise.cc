// Ops that treat every number, or every row, alike: silu, sigmoid, softmax, add, mul, bias_add, scale, ...
#include <cmath>

#include "ops/ops.h"
#include "ops/routing.h"
#include "runtime/step.h"

namespace deepmnn {
namespace {

using Unary = void (*Kernels::*)(const float* x, int64_t n, float* y);
using Binary = void (*Kernels::*)(const float* a, const float* b, int64_t n, float* y);

class UnaryOp : public Op {
 public:
  UnaryOp(const OpSpec& spec, Unary kernel) : kernel_(kernel) {
    spec.require_counts(1, 1, 0);
    x_ = spec.input(0);
    y_ = spec.output(0, x_.dim, x_.width);
  }

  void run(Step& step) override {
    const float* x = step.f32(x_);
    float* y = step.f32(y_);
    for_rows(step, step.n(x_), 4 * x_.width,
             [&](int64_t row, int) { (step.kernels.*kernel_)(x + row * x_.width, x_.width, y + row * x_.width); });
  }

 private:
  Unary kernel_;
  Buffer x_, y_;
};

class BinaryOp : public Op {
 public:
  BinaryOp(const OpSpec& spec, Binary kernel) : kernel_(kernel) {
    spec.require_counts(2, 1, 0);
    a_ = spec.input(0);
    b_ = spec.input(1, a_.dim, a_.width);
    y_ = spec.output(0, a_.dim, a_.width);
  }

  void run(Step& step) override {
    const float *a = step.f32(a_), *b = step.f32(b_);
    float* y = step.f32(y_);
    for_rows(step, step.n(a_), 2 * a_.width, [&](int64_t row, int) {
      const int64_t at = row * a_.width;
      (step.kernels.*kernel_)(a + at, b + at, a_.width, y + at);
    });
  }

 private:
  Binary kernel_;
  Buffer a_, b_, y_;
};

class BiasAdd : public Op {
 public:
  explicit BiasAdd(const OpSpec& spec) {
    spec.require_counts(1, 1, 1);
    x_ = spec.input(0);
    y_ = spec.output(0, x_.dim, x_.width);
    bias_ = spec.vector(0, x_.width);
  }

  void run(Step& step) override {
    const float *x = step.f32(x_), *bias = step.pin_vector(bias_);
    float* y = step.f32(y_);
    for_rows(step, step.n(x_), 2 * x_.width,
             [&](int64_t row, int) { step.kernels.add(x + row * x_.width, bias, x_.width, y + row * x_.width); });
  }

 private:
  Buffer x_, y_;
  WeightRef bias_;
};

class Scale : public Op {
 public:
  explicit Scale(const OpSpec& spec) {
    spec.require_counts(1, 1, 0);
    x_ = spec.input(0);
    y_ = spec.output(0, x_.dim, x_.width);
    factor_ = spec.float_attr("factor");
  }

  void run(Step& step) override {
    const float* x = step.f32(x_);
    float* y = step.f32(y_);
    for_rows(step, step.n(x_), x_.width,
             [&](int64_t row, int) { step.kernels.scale(x + row * x_.width, factor_, x_.width, y + row * x_.width); });
  }

 private:
  Buffer x_, y_;
  float factor_;
};

// Ops that no hot path has are loops, compiled for any machine.
template <class Function>
void map_rows(const Step& step, const Buffer& x, const Buffer& y, Function&& function) {
  const float* from = step.f32(x);
  float* to = step.f32(y);
  for_rows(step, step.n(x), 4 * x.width, [&](int64_t row, int) {
    for (int64_t i = row * x.width; i < (row + 1) * x.width; ++i) to[i] = function(from[i]);
  });
}

class Clamp : public Op {
 public:
  explicit Clamp(const OpSpec& spec) {
    spec.require_counts(1, 1, 0);
    x_ = spec.input(0);
    y_ = spec.output(0, x_.dim, x_.width);
    limit_ = spec.float_attr("limit");
    two_sided_ = spec.int_attr("two_sided", 0, 1) != 0;
  }

  void run(Step& step) override {
    map_rows(step, x_, y_, [&](float x) {
      const float most = x > limit_ ? limit_ : x;  // NaN stays NaN
      return two_sided_ && most < -limit_ ? -limit_ : most;
    });
  }

 private:
  Buffer x_, y_;
  float limit_;
  bool two_sided_;
};

class AddConstant : public Op {
 public:
  explicit AddConstant(const OpSpec& spec) {
    spec.require_counts(1, 1, 0);
    x_ = spec.input(0);
    y_ = spec.output(0, x_.dim, x_.width);
    constant_ = spec.float_attr("constant");
  }

  void run(Step& step) override {
    map_rows(step, x_, y_, [&](float x) { return x + constant_; });
  }

 private:
  Buffer x_, y_;
  float constant_;
};

class SqrtSoftplus : public Op {
 public:
  explicit SqrtSoftplus(const OpSpec& spec) {
    spec.require_counts(1, 1, 0);
    x_ = spec.input(0);
    y_ = spec.output(0, x_.dim, x_.width);
  }

  void run(Step& step) override { map_rows(step, x_, y_, sqrt_softplus); }

 private:
  Buffer x_, y_;
};

// x times a vector, or times one number.
class Gain : public Op {
 public:
  explicit Gain(const OpSpec& spec) {
    spec.require_counts(1, 1, 1);
    x_ = spec.input(0);
    y_ = spec.output(0, x_.dim, x_.width);
    one_ = spec.weight_cols(0) == 1;
    gain_ = spec.vector(0, one_ ? 1 : x_.width);
  }

  void run(Step& step) override {
    const float *x = step.f32(x_), *gain = step.pin_vector(gain_);
    float* y = step.f32(y_);
    for_rows(step, step.n(x_), 2 * x_.width, [&](int64_t row, int) {
      const int64_t at = row * x_.width;
      if (one_) return step.kernels.scale(x + at, gain[0], x_.width, y + at);
      step.kernels.mul(x + at, gain, x_.width, y + at);
    });
  }

 private:
  Buffer x_, y_;
  bool one_;
  WeightRef gain_;
};

}  // namespace

float sqrt_softplus(float x) { return std::sqrt(x > 20.0f ? x : std::log1p(std::exp(x))); }

OpPtr make_clamp(const OpSpec& spec) { return std::make_unique<Clamp>(spec); }
OpPtr make_add_constant(const OpSpec& spec) { return std::make_unique<AddConstant>(spec); }
OpPtr make_sqrt_softplus(const OpSpec& spec) { return std::make_unique<SqrtSoftplus>(spec); }
OpPtr make_gain(const OpSpec& spec) { return std::make_unique<Gain>(spec); }
OpPtr make_silu(const OpSpec& spec) { return std::make_unique<UnaryOp>(spec, &Kernels::silu); }
OpPtr make_sigmoid(const OpSpec& spec) { return std::make_unique<UnaryOp>(spec, &Kernels::sigmoid); }
OpPtr make_softmax(const OpSpec& spec) { return std::make_unique<UnaryOp>(spec, &Kernels::softmax); }
OpPtr make_add(const OpSpec& spec) { return std::make_unique<BinaryOp>(spec, &Kernels::add); }
OpPtr make_mul(const OpSpec& spec) { return std::make_unique<BinaryOp>(spec, &Kernels::mul); }
OpPtr make_bias_add(const OpSpec& spec) { return std::make_unique<BiasAdd>(spec); }
OpPtr make_scale(const OpSpec& spec) { return std::make_unique<Scale>(spec); }

}  // namespace deepmnn
