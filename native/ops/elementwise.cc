// Ops that treat every number, or every row, alike: silu, sigmoid, softmax, add, mul, bias_add, scale.
#include "ops/ops.h"
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

}  // namespace

OpPtr make_silu(const OpSpec& spec) { return std::make_unique<UnaryOp>(spec, &Kernels::silu); }
OpPtr make_sigmoid(const OpSpec& spec) { return std::make_unique<UnaryOp>(spec, &Kernels::sigmoid); }
OpPtr make_softmax(const OpSpec& spec) { return std::make_unique<UnaryOp>(spec, &Kernels::softmax); }
OpPtr make_add(const OpSpec& spec) { return std::make_unique<BinaryOp>(spec, &Kernels::add); }
OpPtr make_mul(const OpSpec& spec) { return std::make_unique<BinaryOp>(spec, &Kernels::mul); }
OpPtr make_bias_add(const OpSpec& spec) { return std::make_unique<BiasAdd>(spec); }
OpPtr make_scale(const OpSpec& spec) { return std::make_unique<Scale>(spec); }

}  // namespace deepmnn
