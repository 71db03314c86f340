#include "ops/ops.h"
#include "runtime/step.h"

namespace deepmnn {
namespace {

class Embedding : public Op {
 public:
  explicit Embedding(const OpSpec& spec) {
    spec.require_counts(1, 1, 1);
    spec.require_graph_input(0, "ids");  // whose range the step has checked
    ids_ = spec.int_input(0, Dim::tokens, 1);
    spec.require_reading(0, Reading::looked_up);  // so that its rows limit the ids
    table_ = spec.matrix(0);
    y_ = spec.output(0, Dim::tokens, table_.cols);
  }

  void run(Step& step) override {
    const int32_t* ids = step.ints(ids_);
    float* y = step.f32(y_);
    const uint8_t** blocks = step.scratch.take<const uint8_t*>(kTableRows);
    for (int64_t first = 0; first < step.n(y_); first += kTableRows) {
      const int64_t n = std::min(kTableRows, step.n(y_) - first);
      step.weights.pin_rows(table_.id, ids + first, n, blocks);
      for_rows(step, n, y_.width, [&](int64_t i, int) {
        const Weight block{blocks[i], kBlockRows, table_.cols, table_.format};
        step.kernels.decode_row(block, ids[first + i] % kBlockRows, y + (first + i) * y_.width);
      });
    }
  }

 private:
  Buffer ids_, y_;
  WeightRef table_;
};

}  // namespace

OpPtr make_embedding(const OpSpec& spec) { return std::make_unique<Embedding>(spec); }

}  // namespace deepmnn
