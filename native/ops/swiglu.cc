#include "ops/gemm.h"
#include "ops/ops.h"

namespace deepmnn {
namespace {

class Swiglu : public Op {
 public:
  explicit Swiglu(const OpSpec& spec) {
    spec.require_counts(1, 1, 1);
    const int64_t size = spec.int_attr("intermediate_size", 1, kMaxExtentAttr);
    x_ = spec.input(0);
    y_ = spec.output(0, x_.dim, size);
    weight_ = spec.matrix(0, 2 * ((size + kBlockRows - 1) / kBlockRows * kBlockRows), x_.width);
    limit_ = spec.float_attr("limit");
    read_as_ = spec.read_as(0);
  }

  void run(Step& step) override {
    if (step.n(x_) == 0) return;
    LinearTask task;
    task.weight = step.pin(weight_);
    task.rows = input_rows(step, x_, task.weight);
    task.out_cols = y_.width;
    task.epilogue = Epilogue::swiglu;
    task.limit = limit_;
    if (read_as_ != RowForm::floats) {
      const QuantizedRows y = step.quantized.put(step, y_, read_as_);
      return run_linear(step, &task, 1, &y);
    }
    task.y = step.f32(y_);
    task.y_stride = y_.width;
    run_linear(step, &task, 1);
  }

 private:
  Buffer x_, y_;
  WeightRef weight_;
  float limit_;
  RowForm read_as_;  // y, by all that read it
};

}  // namespace

OpPtr make_swiglu(const OpSpec& spec) { return std::make_unique<Swiglu>(spec); }

}  // namespace deepmnn
