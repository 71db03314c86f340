#include "ops/ops.h"
#include "runtime/step.h"

namespace deepmnn {
namespace {

// Calls norm(row, where y's row goes) for all rows. Where a quantised product alone reads y they are left quantised,
// and memory never sees the floats.
template <class Norm>
void norm_rows(Step& step, const Buffer& y, RowForm read_as, int64_t cost, Norm&& norm) {
  const int64_t n = step.n(y), width = y.width;
  if (read_as == RowForm::floats) {
    float* to = step.f32(y);
    return for_rows(step, n, cost, [&](int64_t row, int) { norm(row, to + row * width); });
  }
  const QuantizedRows to = step.quantized.put(step, y, read_as);
  float* rooms = step.scratch.take<float>(step.pool.size() * width);
  for_rows(step, n, cost, [&](int64_t row, int worker) {
    float* room = rooms + worker * width;
    norm(row, room);
    step.kernels.quantize_rows(room, width, 1, width, to.from(row));
  });
}

class RmsNorm : public Op {
 public:
  explicit RmsNorm(const OpSpec& spec) {
    spec.require(spec.inputs() == 1 && spec.outputs() == 1 && spec.weights() <= 1, "its inputs, outputs and weights",
                 "1 input, 1 output, 0 or 1 weights");
    x_ = spec.input(0);
    y_ = spec.output(0, x_.dim, x_.width);
    heads_ = spec.int_attr("heads", 1, x_.width);
    eps_ = spec.float_attr("eps");
    spec.require(x_.width % heads_ == 0, "a width of " + std::to_string(x_.width), "whole heads");
    if (spec.weights() == 1) weight_ = spec.vector(0, x_.width / heads_);
    read_as_ = spec.read_as(0);
  }

  void run(Step& step) override {
    const float *x = step.f32(x_), *weight = step.pin_vector(weight_);
    const int64_t d = x_.width / heads_;
    norm_rows(step, y_, read_as_, x_.width, [&](int64_t row, float* y) {
      for (int64_t at = 0; at < x_.width; at += d) {
        step.kernels.rms_norm(x + row * x_.width + at, weight, eps_, d, y + at);
      }
    });
  }

 private:
  Buffer x_, y_;
  int64_t heads_;
  float eps_;
  WeightRef weight_;
  RowForm read_as_;
};

class LayerNorm : public Op {
 public:
  explicit LayerNorm(const OpSpec& spec) {
    spec.require_counts(1, 1, 2);
    x_ = spec.input(0);
    y_ = spec.output(0, x_.dim, x_.width);
    eps_ = spec.float_attr("eps");
    weight_ = spec.vector(0, x_.width);
    bias_ = spec.vector(1, x_.width);
    read_as_ = spec.read_as(0);
  }

  void run(Step& step) override {
    const float *x = step.f32(x_), *weight = step.pin_vector(weight_), *bias = step.pin_vector(bias_);
    norm_rows(step, y_, read_as_, 2 * x_.width, [&](int64_t row, float* y) {
      step.kernels.layer_norm(x + row * x_.width, weight, bias, eps_, x_.width, y);
    });
  }

 private:
  Buffer x_, y_;
  float eps_;
  WeightRef weight_, bias_;
  RowForm read_as_;
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
    read_as_ = spec.read_as(1);
  }

  void run(Step& step) override {
    const float *a = step.f32(a_), *b = step.f32(b_), *weight = step.pin_vector(weight_);
    float* sum = step.f32(sum_);
    const int64_t d = a_.width;
    norm_rows(step, y_, read_as_, 3 * d, [&](int64_t row, float* y) {
      const int64_t at = row * d;
      step.kernels.add_rms_norm(a + at, b + at, weight, eps_, d, sum + at, y);
    });
  }

 private:
  Buffer a_, b_, sum_, y_;
  float eps_;
  WeightRef weight_;
  RowForm read_as_;
};

}  // namespace

OpPtr make_rms_norm(const OpSpec& spec) { return std::make_unique<RmsNorm>(spec); }
OpPtr make_layer_norm(const OpSpec& spec) { return std::make_unique<LayerNorm>(spec); }
OpPtr make_add_rms_norm(const OpSpec& spec) { return std::make_unique<AddRmsNorm>(spec); }

}  // namespace deepmnn
