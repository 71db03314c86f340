// Ops that only move numbers: reshape, split, concat, broadcast, select_rows.
#include "ops/ops.h"
#include "runtime/step.h"

namespace deepmnn {
namespace {

class Reshape : public Op {
 public:
  explicit Reshape(const OpSpec& spec) {
    spec.require_counts(1, 1, 0);
    x_ = spec.input(0);
    y_ = spec.output(0, x_.dim, x_.width);
  }

  void run(Step& step) override {
    const float* x = step.f32(x_);
    float* y = step.f32(y_);
    if (x == y) return;
    for_rows(step, step.n(x_), x_.width,
             [&](int64_t row, int) { std::copy_n(x + row * x_.width, x_.width, y + row * x_.width); });
  }

 private:
  Buffer x_, y_;
};

// Between one buffer [n, heads, sum of sizes] and several [n, heads, size]: split one way, concat the other.
class SplitConcat : public Op {
 public:
  SplitConcat(const OpSpec& spec, bool split) : split_(split) {
    const size_t count = split ? spec.outputs() : spec.inputs();
    spec.require((split ? spec.inputs() : spec.outputs()) == 1 && count >= 1 && spec.weights() == 0,
                 "its inputs, outputs and weights", "one whole, at least one part, no weights");
    heads_ = spec.int_attr("heads", 1, kMaxExtentAttr);
    whole_ = split ? spec.input(0) : spec.output(0);
    int64_t width = 0;
    for (size_t i = 0; i < count; ++i) {
      const Buffer part = split ? spec.output(i) : spec.input(i);
      spec.require(part.dim == whole_.dim && part.width % heads_ == 0, "part " + std::to_string(i),
                   "the same rows, and whole heads");
      parts_.push_back(part);
      width += part.width;
    }
    spec.require(width == whole_.width, "parts of " + std::to_string(width) + " in all", std::to_string(whole_.width));
    if (split) check_sizes(spec);
  }

  void run(Step& step) override {
    float* whole = step.f32(whole_);
    const int64_t stride = whole_.width / heads_;
    int64_t column = 0;
    for (const Buffer& buffer : parts_) {
      float* part = step.f32(buffer);
      const int64_t size = buffer.width / heads_, first = column;
      for_rows(step, step.n(whole_) * heads_, size, [&](int64_t head, int) {
        float *outer = whole + head * stride + first, *inner = part + head * size;
        std::copy_n(split_ ? outer : inner, size, split_ ? inner : outer);
      });
      column += size;
    }
  }

 private:
  void check_sizes(const OpSpec& spec) const {
    const std::vector<int64_t> sizes = spec.ints_attr("sizes");
    spec.require(sizes.size() == parts_.size(), std::to_string(sizes.size()) + " sizes",
                 std::to_string(parts_.size()) + " as there are outputs");
    for (size_t i = 0; i < sizes.size(); ++i) {
      spec.require(sizes[i] == parts_[i].width / heads_, "size " + std::to_string(sizes[i]),
                   std::to_string(parts_[i].width / heads_) + " as output " + std::to_string(i) + " says");
    }
  }

  bool split_;
  int64_t heads_;
  Buffer whole_;
  std::vector<Buffer> parts_;
};

class Broadcast : public Op {
 public:
  explicit Broadcast(const OpSpec& spec) {
    spec.require_counts(1, 1, 0);
    heads_ = spec.int_attr("heads", 1, kMaxExtentAttr);
    x_ = spec.input(0);
    y_ = spec.output(0);
    spec.require(y_.dim == x_.dim && y_.width % heads_ == 0 && y_.width / heads_ == x_.width,
                 "an output of width " + std::to_string(y_.width), "heads times the input's");
  }

  void run(Step& step) override {
    const float* x = step.f32(x_);
    float* y = step.f32(y_);
    for_rows(step, step.n(x_) * heads_, x_.width,
             [&](int64_t head, int) { std::copy_n(x + head / heads_ * x_.width, x_.width, y + head * x_.width); });
  }

 private:
  Buffer x_, y_;
  int64_t heads_;
};

class SelectRows : public Op {
 public:
  explicit SelectRows(const OpSpec& spec) {
    spec.require_counts(1, 1, 0);
    x_ = spec.input(0);
    spec.require(x_.dim == Dim::tokens, "an input that does not count tokens", "[tokens, d]");
    y_ = spec.output(0, Dim::rows, x_.width);
  }

  void run(Step& step) override {
    const float* x = step.f32(x_);
    float* y = step.f32(y_);
    for_rows(step, step.n(y_), y_.width, [&](int64_t row, int) {
      std::copy_n(x + step.batch.logit_rows[row] * x_.width, x_.width, y + row * x_.width);
    });
  }

 private:
  Buffer x_, y_;
};

}  // namespace

OpPtr make_reshape(const OpSpec& spec) { return std::make_unique<Reshape>(spec); }
OpPtr make_split(const OpSpec& spec) { return std::make_unique<SplitConcat>(spec, true); }
OpPtr make_concat(const OpSpec& spec) { return std::make_unique<SplitConcat>(spec, false); }
OpPtr make_broadcast(const OpSpec& spec) { return std::make_unique<Broadcast>(spec); }
OpPtr make_select_rows(const OpSpec& spec) { return std::make_unique<SelectRows>(spec); }

}  // namespace deepmnn
