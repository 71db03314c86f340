#include "ops/gathered.h"
#include "ops/ops.h"
#include "runtime/fail.h"

namespace deepmnn {
namespace {

// The plain op: rows and entries of the whole context lie in buffers.
class WindowAttention : public Op {
 public:
  explicit WindowAttention(const OpSpec& spec) {
    spec.require(spec.inputs() >= 2 && spec.inputs() <= 4 && spec.outputs() == 1 && spec.weights() == 1,
                 "its inputs, outputs and weights", "2 to 4 inputs, 1 output, 1 weight");
    shape_.heads = spec.int_attr("heads", 1, kMaxExtentAttr);
    const int64_t dim = spec.int_attr("head_dim", 1, kMaxExtentAttr);
    shape_.attend = {dim, dim, spec.float_attr("scale")};
    shape_.row_nbytes = dim * 4;
    window_ = spec.int_attr("window", 1, kMaxExtentAttr);
    ratio_ = spec.int_attr("ratio", 1, kMaxExtentAttr);
    q_ = spec.input(0, Dim::tokens, shape_.heads * dim);
    keys_ = spec.input(1, Dim::context, dim);
    has_entries_ = spec.inputs() > 2;
    is_sparse_ = spec.inputs() > 3;
    if (has_entries_) entries_ = spec.input(2, Dim::context, dim);
    if (is_sparse_) {
      chosen_ = spec.int_input(3);
      spec.require(chosen_.dim == Dim::tokens, "choices that do not count tokens", "[tokens, k]");
    }
    y_ = spec.output(0, Dim::tokens, q_.width);
    sinks_ = spec.vector(0, shape_.heads);
  }

  void run(Step& step) override {
    const TokenPlace* places = token_places(step);
    const float* sinks = step.pin_vector(sinks_);
    const int64_t tokens = step.batch.tokens;
    int64_t most = 0;
    for (int64_t token = 0; token < tokens; ++token) most = std::max(most, seen(step, places[token], token));
    attend_gathered(
        step, shape_, step.f32(q_), sinks, step.f32(y_), tokens, most,
        [&](int64_t token) { return seen(step, places[token], token); },
        [&](int64_t token, int64_t i) { return row(step, places[token], token, i); });
  }

 private:
  int64_t windowed(const TokenPlace& at) const { return std::min<int64_t>(window_, at.position + 1); }

  int64_t seen(const Step& step, const TokenPlace& at, int64_t token) const {
    if (!has_entries_) return windowed(at);
    if (!is_sparse_) return windowed(at) + (at.position + 1) / ratio_;
    const int32_t* chosen = step.ints(chosen_) + token * chosen_.width;
    int64_t n = 0;
    for (; n < chosen_.width && chosen[n] >= 0; ++n) {
      if (chosen[n] > at.position) fail_artifact("program.bin: a key that the token does not see", "an earlier one");
    }
    return windowed(at) + n;
  }

  const uint8_t* row(const Step& step, const TokenPlace& at, int64_t token, int64_t i) const {
    const int64_t n = windowed(at), start = step.context_starts[at.sequence];
    const Buffer& from = i < n ? keys_ : entries_;
    int64_t found = at.position + 1 - n + i;
    if (i >= n) found = is_sparse_ ? step.ints(chosen_)[token * chosen_.width + i - n] : (i - n + 1) * ratio_ - 1;
    return reinterpret_cast<const uint8_t*>(step.f32(from) + (start + found) * from.width);
  }

  GatheredShape shape_;
  int64_t window_, ratio_;
  bool has_entries_, is_sparse_;
  Buffer q_, keys_, entries_, chosen_, y_;
  WeightRef sinks_;
};

}  // namespace

OpPtr make_window_attention(const OpSpec& spec) { return std::make_unique<WindowAttention>(spec); }

}  // namespace deepmnn
