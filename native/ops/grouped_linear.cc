#include "ops/gemm.h"
#include "ops/ops.h"

namespace deepmnn {
namespace {

// A matrix for each group of columns. Groups whose rows are no whole blocks of 16 are computed with their neighbours'
// rows of the first and the last block, into scratch.
class GroupedLinear : public Op {
 public:
  explicit GroupedLinear(const OpSpec& spec) {
    spec.require_counts(1, 1, 1);
    x_ = spec.input(0);
    weight_ = spec.matrix(0);
    groups_ = spec.int_attr("groups", 1, kMaxExtentAttr);
    spec.require(weight_.rows % groups_ == 0, "a weight of " + std::to_string(weight_.rows) + " rows",
                 "as many for each of " + std::to_string(groups_) + " groups");
    spec.require(x_.width == groups_ * weight_.cols, "an input of width " + std::to_string(x_.width),
                 std::to_string(groups_ * weight_.cols));
    out_ = weight_.rows / groups_;
    y_ = spec.output(0, x_.dim, weight_.rows);
  }

  void run(Step& step) override {
    const int64_t n = step.n(x_);
    if (n == 0) return;
    const Weight weight = step.pin(weight_);
    const RowForm form = form_of(weight.format);
    LinearTask* tasks = step.scratch.take<LinearTask>(groups_);
    for (int64_t group = 0; group < groups_; ++group) tasks[group] = task(step, weight, form, group, n);
    run_linear(step, tasks, groups_);
    if (whole_blocks()) return;
    float* y = step.f32(y_);
    for (int64_t group = 0; group < groups_; ++group) {
      const LinearTask& each = tasks[group];
      const int64_t skipped = group * out_ % kBlockRows;
      for_rows(step, n, out_, [&](int64_t row, int) {
        std::copy_n(each.y + row * each.y_stride + skipped, out_, y + row * y_.width + group * out_);
      });
    }
  }

 private:
  bool whole_blocks() const { return out_ % kBlockRows == 0; }

  LinearTask task(Step& step, const Weight& weight, RowForm form, int64_t group, int64_t n) const {
    const int64_t first = group * out_ / kBlockRows, end = (group + 1) * out_;
    LinearTask task;
    task.weight = weight;
    task.weight.data += first * block_nbytes(weight.format, weight.cols);
    task.weight.rows = task.out_cols =
        std::min(weight.rows, (end + kBlockRows - 1) / kBlockRows * kBlockRows) - first * kBlockRows;
    task.rows.x = step.f32(x_) + group * weight.cols;
    task.rows.stride = x_.width;
    task.rows.n = n;
    if (form != RowForm::floats) {
      task.rows.quantized = quantize(step, task.rows.x, x_.width, n, weight.cols, form);
    }
    if (whole_blocks()) {
      task.y = step.f32(y_) + group * out_;
      task.y_stride = y_.width;
    } else {
      task.y = step.scratch.take<float>(n * task.out_cols);
      task.y_stride = task.out_cols;
    }
    return task;
  }

  Buffer x_, y_;
  WeightRef weight_;
  int64_t groups_, out_;
};

}  // namespace

OpPtr make_grouped_linear(const OpSpec& spec) { return std::make_unique<GroupedLinear>(spec); }

}  // namespace deepmnn
