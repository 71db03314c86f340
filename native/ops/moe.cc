#include "ops/expert_groups.h"
#include "ops/gemm.h"
#include "ops/ops.h"

namespace deepmnn {
namespace {

// A mixture of SwiGLU experts: tokens sorted by expert, one dispatch for every expert's gate and up, one for every
// down, then the weighted sum. For one token that is a handful of matrix-vector products in two dispatches.
class Moe : public Op {
 public:
  explicit Moe(const OpSpec& spec) {
    spec.require((spec.inputs() == 3 || spec.inputs() == 4) && spec.outputs() == 1, "its inputs and outputs",
                 "3 or 4 inputs, 1 output");
    const int64_t experts = spec.int_attr("experts", 1, kMaxExtentAttr);
    top_k_ = spec.int_attr("top_k", 1, kMaxExtentAttr);
    size_ = spec.int_attr("intermediate_size", 1, kMaxExtentAttr);
    limit_ = spec.float_attr("limit");
    spec.require(spec.weights() == 2 * static_cast<size_t>(experts), std::to_string(spec.weights()) + " weights",
                 "gate_up and down for each expert");
    x_ = spec.input(0);
    indices_ = spec.int_input(1, x_.dim, top_k_);
    weights_ = spec.input(2, x_.dim, top_k_);
    has_shared_ = spec.inputs() == 4;
    if (has_shared_) shared_ = spec.input(3, x_.dim, x_.width);
    y_ = spec.output(0, x_.dim, x_.width);
    const int64_t gate_up_rows = 2 * ((size_ + kBlockRows - 1) / kBlockRows * kBlockRows);
    for (size_t i = 0; i < spec.weights(); i += 2) {
      const WeightRef gate_up = spec.matrix(i, gate_up_rows, x_.width), down = spec.matrix(i + 1, x_.width, size_);
      experts_.push_back(gate_up.id);
      experts_.push_back(down.id);
      gate_up_forms_.add(gate_up.format);
      down_forms_.add(down.format);
    }
  }

  void run(Step& step) override {
    const int64_t n = step.n(x_);
    if (n == 0) return;
    const ExpertGroups groups =
        group_by_expert(step, step.ints(indices_), n, top_k_, static_cast<int64_t>(experts_.size()) / 2);
    const FormedRows rows = FormedRows::all(gate_up_forms_, [&](RowForm form) {
      return gather(step, step.quantized.get(step, x_, form), groups.tokens, groups.n, x_.width);
    });
    const Hidden hidden = take_hidden(step, groups);
    float* parts = step.scratch.take<float>(groups.n * y_.width);  // [choices, hidden], sorted by expert
    ExpertTurns turns(step, groups, experts_.data(), 2);           // gate_up, down
    while (turns.next()) {
      run_gate_up(step, groups, turns, rows, hidden);
      run_down(step, groups, turns, hidden, parts);
    }
    combine_choices(step, parts, groups.place, step.f32(weights_), n, top_k_, y_.width,
                    has_shared_ ? step.f32(shared_) : nullptr, step.f32(y_));
  }

  RoutedWeights routed() const override {
    return {experts_.data(), static_cast<int64_t>(experts_.size()) / 2, 2, top_k_};
  }

 private:
  // Rows of intermediate_size, one a choice, sorted by expert: quantised alone where all experts read one form of them,
  // else floats.
  struct Hidden {
    float* x = nullptr;
    QuantizedRows direct;
  };

  Hidden take_hidden(Step& step, const ExpertGroups& groups) const {
    const RowForm only = down_forms_.only();
    if (only == RowForm::floats) return {step.scratch.take<float>(groups.n * size_), {}};
    return {nullptr, take_quantized(step, groups.n, size_, only)};
  }

  void run_gate_up(Step& step, const ExpertGroups& groups, const ExpertTurns& turns, const FormedRows& rows,
                   const Hidden& hidden) const {
    QuantizedRows* outputs = step.scratch.take<QuantizedRows>(turns.n());
    LinearTask* tasks = step.scratch.take<LinearTask>(turns.n());
    for (int64_t i = 0; i < turns.n(); ++i) {
      const int64_t group = turns.group(i), start = groups.starts[group];
      LinearTask task;
      task.weight = turns.weight(i, 0);
      task.rows.x = step.f32(x_);
      task.rows.stride = x_.width;
      task.rows.index = groups.tokens + start;
      task.rows.quantized = rows.from(start, task.weight);
      task.rows.n = groups.size(group);
      task.out_cols = size_;
      task.epilogue = Epilogue::swiglu;
      task.limit = limit_;
      if (hidden.x) {
        task.y = hidden.x + start * size_;
        task.y_stride = size_;
      } else {
        outputs[i] = hidden.direct.from(start);
      }
      tasks[i] = task;
    }
    run_linear(step, tasks, turns.n(), hidden.x ? nullptr : outputs);
  }

  void run_down(Step& step, const ExpertGroups& groups, const ExpertTurns& turns, const Hidden& hidden,
                float* parts) const {
    LinearTask* tasks = step.scratch.take<LinearTask>(turns.n());
    for (int64_t i = 0; i < turns.n(); ++i) {
      const int64_t group = turns.group(i), start = groups.starts[group];
      LinearTask task;
      task.weight = turns.weight(i, 1);
      const RowForm form = form_of(task.weight.format);
      task.rows.stride = size_;
      task.rows.n = groups.size(group);
      if (hidden.x) task.rows.x = hidden.x + start * size_;
      if (!hidden.x) {
        task.rows.quantized = hidden.direct.from(start);
      } else if (form != RowForm::floats) {
        task.rows.quantized = quantize(step, task.rows.x, size_, task.rows.n, size_, form);
      }
      task.y = parts + start * y_.width;
      task.y_stride = task.out_cols = y_.width;
      tasks[i] = task;
    }
    run_linear(step, tasks, turns.n());
  }

  int64_t top_k_, size_;
  float limit_;
  Buffer x_, indices_, weights_, shared_, y_;
  bool has_shared_;
  std::vector<uint32_t> experts_;         // ids of each expert's gate_up and down
  ReadForms gate_up_forms_, down_forms_;  // of all experts
};

}  // namespace

OpPtr make_moe(const OpSpec& spec) { return std::make_unique<Moe>(spec); }

}  // namespace deepmnn
