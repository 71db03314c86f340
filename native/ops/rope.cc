#include "ops/rope.h"

#include "ops/ops.h"

namespace deepmnn {
namespace {

class RopeOp : public Op {
 public:
  explicit RopeOp(const OpSpec& spec) {
    spec.require_counts(2, 1, 0);
    x_ = spec.input(0);
    of_tokens_ = x_.dim == Dim::tokens;
    if (of_tokens_) spec.require_graph_input(1, "positions");
    if (!of_tokens_) positions_ = spec.int_input(1, x_.dim, 1);
    heads_ = spec.int_attr("heads", 1, kMaxExtentAttr);
    spec.require(x_.width % heads_ == 0, "an input of width " + std::to_string(x_.width), "whole heads");
    y_ = spec.output(0, x_.dim, x_.width);
    rope_ = Rope(spec, x_.width / heads_);
  }

  void run(Step& step) override {
    const float* x = step.f32(x_);
    float* y = step.f32(y_);
    const int64_t d = x_.width / heads_;
    float* rooms = step.scratch.take<float>(step.pool.size() * d);
    for_rows(step, step.n(x_), x_.width, [&](int64_t row, int worker) {
      float* to = y + row * x_.width;
      std::copy_n(x + row * x_.width, x_.width, to);
      for (int64_t head = 0; head < heads_; ++head) {
        if (of_tokens_) {
          rope_.rotate(step, row, to + head * d);
        } else {
          rope_.rotate_at(step, step.i32(positions_)[row], rooms + worker * d, to + head * d);
        }
      }
    });
  }

 private:
  Buffer x_, positions_, y_;
  bool of_tokens_;  // else of rows that bring positions of their own
  int64_t heads_;
  Rope rope_;
};

}  // namespace

OpPtr make_rope(const OpSpec& spec) { return std::make_unique<RopeOp>(spec); }

}  // namespace deepmnn
