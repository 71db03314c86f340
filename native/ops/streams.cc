#include "ops/streams.h"

#include <algorithm>
#include <cmath>

#include "ops/gemm.h"
#include "ops/ops.h"
#include "runtime/step.h"

namespace deepmnn {

void mix(const Kernels& kernels, const float* a, bool transposed, const float* x, int64_t p, int64_t q, int64_t d,
         float* y) {
  for (int64_t i = 0; i < p; ++i) {
    const auto at = [&](int64_t j) { return transposed ? a[j * p + i] : a[i * q + j]; };
    kernels.scale(x, at(0), d, y + i * d);
    for (int64_t j = 1; j < q; ++j) kernels.axpy(at(j), x + j * d, d, y + i * d);
  }
}

namespace {

// Rows (stride 1 inside, `size` apart) or columns made to sum to one.
void normalise_lines(float* x, int64_t size, int64_t apart, int64_t inside, float eps) {
  for (int64_t line = 0; line < size; ++line) {
    float sum = eps;
    for (int64_t i = 0; i < size; ++i) sum += x[line * apart + i * inside];
    for (int64_t i = 0; i < size; ++i) x[line * apart + i * inside] /= sum;
  }
}

}  // namespace

void sinkhorn(float* x, int64_t size, int64_t iterations, float eps) {
  for (int64_t row = 0; row < size; ++row) {
    float* line = x + row * size;
    const float most = *std::max_element(line, line + size);
    float sum = 0.0f;
    for (int64_t i = 0; i < size; ++i) sum += line[i] = std::exp(line[i] - most);
    for (int64_t i = 0; i < size; ++i) line[i] = line[i] / sum + eps;
  }
  normalise_lines(x, size, 1, size, eps);
  for (int64_t i = 1; i < iterations; ++i) {
    normalise_lines(x, size, size, 1, eps);
    normalise_lines(x, size, 1, size, eps);
  }
}

namespace {

class Mix : public Op {
 public:
  explicit Mix(const OpSpec& spec) {
    spec.require_counts(2, 1, 0);
    a_ = spec.input(0);
    x_ = spec.input(1);
    spec.require(x_.dim == a_.dim, "inputs that count different rows", "the same");
    rows_ = spec.int_attr("rows", 1, a_.width);
    transposed_ = spec.int_attr("transposed", 0, 1) != 0;
    cols_ = a_.width / rows_;
    spec.require(a_.width % rows_ == 0 && x_.width % cols_ == 0, "matrices of " + std::to_string(a_.width) + " numbers",
                 std::to_string(rows_) + " whole rows, for an input of " + std::to_string(x_.width));
    y_ = spec.output(0, x_.dim, rows_ * (x_.width / cols_));
  }

  void run(Step& step) override {
    const float *a = step.f32(a_), *x = step.f32(x_);
    float* y = step.f32(y_);
    for_rows(step, step.n(x_), y_.width * cols_, [&](int64_t row, int) {
      mix(step.kernels, a + row * a_.width, transposed_, x + row * x_.width, rows_, cols_, x_.width / cols_,
          y + row * y_.width);
    });
  }

 private:
  Buffer a_, x_, y_;
  int64_t rows_, cols_;
  bool transposed_;
};

class Sinkhorn : public Op {
 public:
  explicit Sinkhorn(const OpSpec& spec) {
    spec.require_counts(1, 1, 0);
    x_ = spec.input(0);
    size_ = spec.int_attr("size", 1, 1 << 14);
    iterations_ = spec.int_attr("iterations", 1, 1 << 14);
    eps_ = spec.float_attr("eps");
    spec.require(x_.width == size_ * size_, "an input of width " + std::to_string(x_.width), "a matrix of that size");
    y_ = spec.output(0, x_.dim, x_.width);
  }

  void run(Step& step) override {
    const float* x = step.f32(x_);
    float* y = step.f32(y_);
    for_rows(step, step.n(x_), 2 * iterations_ * x_.width, [&](int64_t row, int) {
      float* to = y + row * x_.width;
      std::copy_n(x + row * x_.width, x_.width, to);
      sinkhorn(to, size_, iterations_, eps_);
    });
  }

 private:
  Buffer x_, y_;
  int64_t size_, iterations_;
  float eps_;
};

// Residual streams to a block's normed input, and how its output joins them.
class HyperIn : public Op {
 public:
  explicit HyperIn(const OpSpec& spec) {
    spec.require_counts(1, 3, 4);
    streams_ = spec.int_attr("streams", 1, 64);
    iterations_ = spec.int_attr("iterations", 1, 1 << 14);
    eps_ = spec.float_attr("eps");
    norm_eps_ = spec.float_attr("norm_eps");
    x_ = spec.input(0);
    spec.require(x_.width % streams_ == 0, "an input of width " + std::to_string(x_.width), "whole streams");
    y_ = spec.output(0, x_.dim, x_.width / streams_);
    post_ = spec.output(1, x_.dim, streams_);
    comb_ = spec.output(2, x_.dim, streams_ * streams_);
    fn_ = spec.matrix(0, streams_ * (2 + streams_), x_.width);
    scale_ = spec.vector(1, 3);
    base_ = spec.vector(2, fn_.rows);
    norm_ = spec.vector(3, y_.width);
  }

  void run(Step& step) override {
    const int64_t n = step.n(x_), count = fn_.rows;
    if (n == 0) return;
    LinearTask task;
    task.weight = step.pin(fn_);
    task.rows = input_rows(step, x_, task.weight);
    task.y = step.scratch.take<float>(n * count);
    task.y_stride = task.out_cols = count;
    run_linear(step, &task, 1);
    const float *scale = step.pin_vector(scale_), *base = step.pin_vector(base_), *norm = step.pin_vector(norm_);
    float* rooms = step.scratch.take<float>(step.pool.size() * y_.width);
    for_rows(step, n, 4 * x_.width, [&](int64_t row, int worker) {
      const float* x = step.f32(x_) + row * x_.width;
      float* found = task.y + row * count;
      weigh(found, inverse_rms(x), scale, base);
      float *pre = found, *post = found + streams_, *comb = found + 2 * streams_;
      step.kernels.sigmoid(pre, 2 * streams_, pre);
      for (int64_t i = 0; i < streams_; ++i) {
        pre[i] += eps_;
        step.f32(post_)[row * streams_ + i] = 2.0f * post[i];
      }
      sinkhorn(comb, streams_, iterations_, eps_);
      std::copy_n(comb, comb_.width, step.f32(comb_) + row * comb_.width);
      float* block = rooms + worker * y_.width;
      mix(step.kernels, pre, false, x, 1, streams_, y_.width, block);
      step.kernels.rms_norm(block, norm, norm_eps_, y_.width, step.f32(y_) + row * y_.width);
    });
  }

 private:
  float inverse_rms(const float* x) const {
    double squares = 0.0;
    for (int64_t i = 0; i < x_.width; ++i) squares += static_cast<double>(x[i]) * x[i];
    return static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(x_.width) + norm_eps_));
  }

  // What the projection gave, as of the normed streams, times the scale of its part, and its base.
  void weigh(float* found, float inverse, const float* scale, const float* base) const {
    for (int64_t i = 0; i < fn_.rows; ++i) {
      found[i] = found[i] * inverse * scale[std::min<int64_t>(i / streams_, 2)] + base[i];
    }
  }

  Buffer x_, y_, post_, comb_;
  int64_t streams_, iterations_;
  float eps_, norm_eps_;
  WeightRef fn_, scale_, base_, norm_;
};

// The streams after a block: post x out + transposed(comb) streams.
class HyperOut : public Op {
 public:
  explicit HyperOut(const OpSpec& spec) {
    spec.require_counts(4, 1, 0);
    streams_ = spec.int_attr("streams", 1, 64);
    x_ = spec.input(0);
    post_ = spec.input(1, x_.dim, streams_);
    comb_ = spec.input(2, x_.dim, streams_ * streams_);
    residual_ = spec.input(3, x_.dim, streams_ * x_.width);
    y_ = spec.output(0, x_.dim, residual_.width);
  }

  void run(Step& step) override {
    const int64_t d = x_.width;
    for_rows(step, step.n(x_), 4 * y_.width, [&](int64_t row, int) {
      float* y = step.f32(y_) + row * y_.width;
      mix(step.kernels, step.f32(comb_) + row * comb_.width, true, step.f32(residual_) + row * y_.width, streams_,
          streams_, d, y);
      for (int64_t i = 0; i < streams_; ++i) {
        step.kernels.axpy(step.f32(post_)[row * streams_ + i], step.f32(x_) + row * d, d, y + i * d);
      }
    });
  }

 private:
  Buffer x_, post_, comb_, residual_, y_;
  int64_t streams_;
};

}  // namespace

OpPtr make_hyper_in(const OpSpec& spec) { return std::make_unique<HyperIn>(spec); }
OpPtr make_hyper_out(const OpSpec& spec) { return std::make_unique<HyperOut>(spec); }
OpPtr make_mix(const OpSpec& spec) { return std::make_unique<Mix>(spec); }
OpPtr make_sinkhorn(const OpSpec& spec) { return std::make_unique<Sinkhorn>(spec); }

}  // namespace deepmnn
