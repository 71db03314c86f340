#include "ops/routing.h"

#include <algorithm>
#include <limits>

#include "ops/ops.h"
#include "runtime/fail.h"
#include "runtime/step.h"

namespace deepmnn {

constexpr float kNever = -std::numeric_limits<float>::infinity();

void top_k(const float* scores, int64_t n, int64_t k, int32_t* indices) {
  int64_t filled = 0;
  for (int64_t i = 0; i < n; ++i) {
    int64_t at = filled;
    while (at > 0 && scores[i] > scores[indices[at - 1]]) --at;
    if (at == k) continue;
    filled = std::min(filled + 1, k);
    for (int64_t j = filled - 1; j > at; --j) indices[j] = indices[j - 1];
    indices[at] = static_cast<int32_t>(i);
  }
}

void normalize(const float* x, int64_t n, float eps, float* y) {
  double sum = eps;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(x[i] / sum);
}

GroupLimit::GroupLimit(const OpSpec& spec, int64_t experts) {
  groups_ = spec.int_attr("n_group", 1, experts);
  spec.require(experts % groups_ == 0, std::to_string(experts) + " experts", "a multiple of n_group");
  size_ = experts / groups_;
  kept_ = spec.int_attr("topk_group", 1, groups_);
  const std::string& score = spec.string_attr("group_score");
  spec.require(score == "max" || score == "top2_sum", "group_score " + score, "max or top2_sum");
  top2_sum_ = score == "top2_sum";
}

float GroupLimit::group_score(const float* scores) const {
  float best = kNever, second = kNever;
  for (int64_t i = 0; i < size_; ++i) {
    if (scores[i] > best) {
      second = best;
      best = scores[i];
    } else if (scores[i] > second) {
      second = scores[i];
    }
  }
  return top2_sum_ && size_ > 1 ? best + second : best;
}

void GroupLimit::apply(const float* scores, float* work, int32_t* chosen, float* y) const {
  for (int64_t g = 0; g < groups_; ++g) work[g] = group_score(scores + g * size_);
  top_k(work, groups_, kept_, chosen);
  const int32_t* end = chosen + kept_;
  for (int64_t g = 0; g < groups_; ++g) {
    const bool keep = std::find(static_cast<const int32_t*>(chosen), end, g) != end;
    for (int64_t i = g * size_; i < (g + 1) * size_; ++i) y[i] = keep ? scores[i] : kNever;
  }
}

namespace {

class GroupLimitOp : public Op {
 public:
  explicit GroupLimitOp(const OpSpec& spec) {
    spec.require_counts(1, 1, 0);
    x_ = spec.input(0);
    y_ = spec.output(0, x_.dim, x_.width);
    limit_ = GroupLimit(spec, x_.width);
  }

  void run(Step& step) override {
    const float* x = step.f32(x_);
    float* y = step.f32(y_);
    float* work = step.scratch.take<float>(step.pool.size() * limit_.groups());
    int32_t* chosen = step.scratch.take<int32_t>(step.pool.size() * limit_.kept());
    for_rows(step, step.n(x_), 4 * x_.width, [&](int64_t row, int worker) {
      limit_.apply(x + row * x_.width, work + worker * limit_.groups(), chosen + worker * limit_.kept(),
                   y + row * x_.width);
    });
  }

 private:
  Buffer x_, y_;
  GroupLimit limit_;
};

class TopK : public Op {
 public:
  explicit TopK(const OpSpec& spec) {
    spec.require_counts(1, 1, 0);
    x_ = spec.input(0);
    y_ = spec.int_output(0, x_.dim, spec.int_attr("top_k", 1, x_.width));
  }

  void run(Step& step) override {
    const float* x = step.f32(x_);
    int32_t* y = step.i32(y_);
    for_rows(step, step.n(x_), 4 * x_.width,
             [&](int64_t row, int) { top_k(x + row * x_.width, x_.width, y_.width, y + row * y_.width); });
  }

 private:
  Buffer x_, y_;
};

class Gather : public Op {
 public:
  explicit Gather(const OpSpec& spec) {
    spec.require_counts(2, 1, 0);
    x_ = spec.input(0);
    indices_ = spec.int_input(1);
    spec.require(indices_.dim == x_.dim, "inputs that count different rows", "the same");
    y_ = spec.output(0, x_.dim, indices_.width);
  }

  void run(Step& step) override {
    const float* x = step.f32(x_);
    const int32_t* indices = step.ints(indices_);
    float* y = step.f32(y_);
    for_rows(step, step.n(x_), 4 * y_.width, [&](int64_t row, int) {
      for (int64_t i = row * y_.width; i < (row + 1) * y_.width; ++i) {
        const int32_t column = indices[i];
        if (column < 0 || column >= x_.width) {
          fail_artifact("program.bin: gather of column " + std::to_string(column),
                        "less than " + std::to_string(x_.width));
        }
        y[i] = x[row * x_.width + column];
      }
    });
  }

 private:
  Buffer x_, indices_, y_;
};

class Normalize : public Op {
 public:
  explicit Normalize(const OpSpec& spec) {
    spec.require_counts(1, 1, 0);
    x_ = spec.input(0);
    y_ = spec.output(0, x_.dim, x_.width);
    eps_ = spec.float_attr("eps");
  }

  void run(Step& step) override {
    const float* x = step.f32(x_);
    float* y = step.f32(y_);
    for_rows(step, step.n(x_), x_.width,
             [&](int64_t row, int) { normalize(x + row * x_.width, x_.width, eps_, y + row * x_.width); });
  }

 private:
  Buffer x_, y_;
  float eps_;
};

}  // namespace

OpPtr make_group_limit(const OpSpec& spec) { return std::make_unique<GroupLimitOp>(spec); }
OpPtr make_top_k(const OpSpec& spec) { return std::make_unique<TopK>(spec); }
OpPtr make_gather(const OpSpec& spec) { return std::make_unique<Gather>(spec); }
OpPtr make_normalize(const OpSpec& spec) { return std::make_unique<Normalize>(spec); }

}  // namespace deepmnn
