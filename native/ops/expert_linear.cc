// The plain mixture of experts: expert_linear (each choice through its expert's matrix) and combine.
#include "ops/expert_groups.h"
#include "ops/gemm.h"
#include "ops/ops.h"

namespace deepmnn {
namespace {

class ExpertLinear : public Op {
 public:
  explicit ExpertLinear(const OpSpec& spec) {
    spec.require(spec.inputs() == 2 && spec.outputs() == 1 && spec.weights() >= 1, "its inputs, outputs and weights",
                 "2 inputs, 1 output, at least 1 weight");
    top_k_ = spec.int_attr("top_k", 1, kMaxExtentAttr);
    per_choice_ = spec.int_attr("per_choice", 0, 1) != 0;
    x_ = spec.input(0);
    const WeightRef first = spec.matrix(0);
    spec.require(x_.width == first.cols * (per_choice_ ? top_k_ : 1), "an input of width " + std::to_string(x_.width),
                 std::to_string(first.cols) + " for each row");
    indices_ = spec.int_input(1, x_.dim, top_k_);
    y_ = spec.output(0, x_.dim, top_k_ * first.rows);
    for (size_t i = 0; i < spec.weights(); ++i) {
      const WeightRef weight = spec.matrix(i, first.rows, first.cols);
      experts_.push_back(weight.id);
      forms_.add(weight.format);
    }
    in_ = first.cols;
    out_ = first.rows;
  }

  void run(Step& step) override {
    const int64_t n = step.n(x_);
    const ExpertGroups groups =
        group_by_expert(step, step.ints(indices_), n, top_k_, static_cast<int64_t>(experts_.size()));
    const int64_t in = in_, out = out_;
    const int32_t* index = per_choice_ ? groups.choices : groups.tokens;
    const FormedRows quantized = FormedRows::all(forms_, [&](RowForm form) {
      const QuantizedRows rows = quantize(step, step.f32(x_), in, per_choice_ ? groups.n : n, in, form);
      return gather(step, rows, index, groups.n, in);
    });
    float* parts = step.scratch.take<float>(groups.n * out);
    ExpertTurns turns(step, groups, experts_.data(), 1);
    while (turns.next()) {
      LinearTask* tasks = step.scratch.take<LinearTask>(turns.n());
      for (int64_t i = 0; i < turns.n(); ++i) {
        const int64_t start = groups.starts[turns.group(i)];
        LinearTask task;
        task.weight = turns.weight(i, 0);
        task.rows.x = step.f32(x_);
        task.rows.stride = in;
        task.rows.index = index + start;
        task.rows.quantized = quantized.from(start, task.weight);
        task.rows.n = groups.size(turns.group(i));
        task.y = parts + start * out;
        task.y_stride = task.out_cols = out;
        tasks[i] = task;
      }
      run_linear(step, tasks, turns.n());
    }
    float* y = step.f32(y_);
    for_rows(step, groups.n, out,
             [&](int64_t choice, int) { std::copy_n(parts + groups.place[choice] * out, out, y + choice * out); });
  }

  RoutedWeights routed() const override { return {experts_.data(), static_cast<int64_t>(experts_.size()), 1, top_k_}; }

 private:
  int64_t top_k_, in_, out_;
  bool per_choice_;
  Buffer x_, indices_, y_;
  std::vector<uint32_t> experts_;  // ids of their weights
  ReadForms forms_;                // of all experts
};

class Combine : public Op {
 public:
  explicit Combine(const OpSpec& spec) {
    spec.require_counts(2, 1, 0);
    top_k_ = spec.int_attr("top_k", 1, kMaxExtentAttr);
    x_ = spec.input(0);
    weights_ = spec.input(1, x_.dim, top_k_);
    y_ = spec.output(0);
    spec.require(y_.dim == x_.dim && x_.width % top_k_ == 0 && x_.width / top_k_ == y_.width,
                 "an output of width " + std::to_string(y_.width), "one top_k-th of the input's");
  }

  void run(Step& step) override {
    combine_choices(step, step.f32(x_), nullptr, step.f32(weights_), step.n(x_), top_k_, y_.width, nullptr,
                    step.f32(y_));
  }

 private:
  int64_t top_k_;
  Buffer x_, weights_, y_;
};

}  // namespace

OpPtr make_expert_linear(const OpSpec& spec) { return std::make_unique<ExpertLinear>(spec); }
OpPtr make_combine(const OpSpec& spec) { return std::make_unique<Combine>(spec); }

}  // namespace deepmnn
