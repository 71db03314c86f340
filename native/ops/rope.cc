#include "ops/rope.h"

#include "ops/ops.h"

namespace deepmnn {
namespace {

class RopeOp : public Op {
 public:
  explicit RopeOp(const OpSpec& spec) {
    spec.require_counts(2, 1, 0);
    spec.require_graph_input(1, "positions");
    x_ = spec.input(0);
    heads_ = spec.int_attr("heads", 1, kMaxExtentAttr);
    spec.require(x_.dim == Dim::tokens && x_.width % heads_ == 0, "an input of width " + std::to_string(x_.width),
                 "[tokens, whole heads]");
    y_ = spec.output(0, Dim::tokens, x_.width);
    rope_ = Rope(spec, x_.width / heads_);
  }

  void run(Step& step) override {
    const float* x = step.f32(x_);
    float* y = step.f32(y_);
    const int64_t d = x_.width / heads_;
    for_rows(step, step.n(x_), x_.width, [&](int64_t token, int) {
      float* to = y + token * x_.width;
      std::copy_n(x + token * x_.width, x_.width, to);
      for (int64_t head = 0; head < heads_; ++head) rope_.rotate(step, token, to + head * d);
    });
  }

 private:
  Buffer x_, y_;
  int64_t heads_;
  Rope rope_;
};

}  // namespace

OpPtr make_rope(const OpSpec& spec) { return std::make_unique<RopeOp>(spec); }

}  // namespace deepmnn
