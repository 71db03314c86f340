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
    const Weight table = step.pin(table_);
    const int32_t* ids = step.ints(ids_);
    float* y = step.f32(y_);
    for_rows(step, step.n(y_), y_.width,
             [&](int64_t row, int) { step.kernels.decode_row(table, ids[row], y + row * y_.width); });
  }

 private:
  Buffer ids_, y_;
  WeightRef table_;
};

}  // namespace

OpPtr make_embedding(const OpSpec& spec) { return std::make_unique<Embedding>(spec); }

}  // namespace deepmnn
