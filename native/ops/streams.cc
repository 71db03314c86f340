#include "ops/streams.h"

#include <algorithm>
#include <cmath>

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

}  // namespace

OpPtr make_mix(const OpSpec& spec) { return std::make_unique<Mix>(spec); }
OpPtr make_sinkhorn(const OpSpec& spec) { return std::make_unique<Sinkhorn>(spec); }

}  // namespace deepmnn
