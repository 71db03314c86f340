#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/compressed.h"
#include "ops/ops.h"
#include "runtime/step.h"

namespace deepmnn {

void compress_window(const EntryShape& shape, const float* const* kv, const float* const* gate, const float* bias,
                     float* room, float* entry) {
  const int64_t d = shape.width, row = shape.row_width();
  float *most = room, *sums = room + d;
  std::fill_n(most, d, -std::numeric_limits<float>::infinity());
  std::fill_n(sums, d, 0.0f);
  std::fill_n(entry, d, 0.0f);
  // Of the window before the first columns count, of its own the last.
  const auto for_slots = [&](auto&& function) {
    for (int64_t i = 0; i < shape.rows(); ++i) {
      if (!kv[i]) continue;
      const int64_t column = i + shape.ratio < shape.rows() ? 0 : row - d;
      function(kv[i] + column, gate[i] + column, bias + i % shape.ratio * row + column);
    }
  };
  for_slots([&](const float*, const float* scores, const float* add) {
    for (int64_t c = 0; c < d; ++c) most[c] = std::max(most[c], scores[c] + add[c]);
  });
  for_slots([&](const float* values, const float* scores, const float* add) {
    for (int64_t c = 0; c < d; ++c) {
      const float weight = std::exp(scores[c] + add[c] - most[c]);
      sums[c] += weight;
      entry[c] += weight * values[c];
    }
  });
  for (int64_t c = 0; c < d; ++c) entry[c] /= sums[c];
}

namespace {

class Compress : public Op {
 public:
  explicit Compress(const OpSpec& spec) {
    spec.require_counts(2, 2, 1);
    kv_ = spec.input(0);
    shape_.ratio = spec.int_attr("ratio", 1, kMaxExtentAttr);
    shape_.overlapping = spec.int_attr("overlapping", 0, 1) != 0;
    spec.require(kv_.dim == Dim::context && kv_.width % shape_.windows() == 0,
                 "an input of width " + std::to_string(kv_.width), "[context, both halves]");
    shape_.width = kv_.width / shape_.windows();
    gate_ = spec.input(1, Dim::context, kv_.width);
    entries_ = spec.output(0, Dim::context, shape_.width);
    positions_ = spec.int_output(1, Dim::context, 1);
    bias_ = spec.vector(0, shape_.ratio * kv_.width);
  }

  void run(Step& step) override {
    const float* bias = step.pin_vector(bias_);
    const int64_t d = shape_.width, rows = shape_.rows();
    std::fill_n(step.f32(entries_), step.n(entries_) * d, 0.0f);
    std::fill_n(step.i32(positions_), step.n(positions_), 0);
    if (step.batch.longest() < shape_.ratio) return;  // no window is complete: room for one grows with the ratio
    float* rooms = step.scratch.take<float>(step.pool.size() * 2 * d);
    const float** pointers = step.scratch.take<const float*>(step.pool.size() * 2 * rows);
    for (int64_t s = 0; s < step.batch.sequences; ++s) {
      const int64_t windows = step.batch.context_lengths[s] / shape_.ratio;
      for_rows(step, windows, 8 * rows * d, [&](int64_t window, int worker) {
        const float **kv = pointers + worker * 2 * rows, **gate = kv + rows;
        const int64_t first = (window + 1) * shape_.ratio - rows;  // row of the sequence
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t at = (step.context_starts[s] + first + i) * kv_.width;
          kv[i] = first + i < 0 ? nullptr : step.f32(kv_) + at;
          gate[i] = first + i < 0 ? nullptr : step.f32(gate_) + at;
        }
        const int64_t last = step.context_starts[s] + (window + 1) * shape_.ratio - 1;
        compress_window(shape_, kv, gate, bias, rooms + worker * 2 * d, step.f32(entries_) + last * d);
        step.i32(positions_)[last] = static_cast<int32_t>(window * shape_.ratio);
      });
    }
  }

 private:
  Buffer kv_, gate_, entries_, positions_;
  EntryShape shape_;
  WeightRef bias_;
};

}  // namespace

OpPtr make_compress(const OpSpec& spec) { return std::make_unique<Compress>(spec); }

}  // namespace deepmnn
