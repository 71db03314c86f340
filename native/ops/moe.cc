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
    const Weight* weights = pin_experts(step, groups, experts_.data(), 2);  // gate_up, down, gate_up, ...
    const Hidden hidden = run_gate_up(step, groups, weights);
    const float* parts = run_down(step, groups, weights, hidden);
    combine_choices(step, parts, groups.place, step.f32(weights_), n, top_k_, y_.width,
                    has_shared_ ? step.f32(shared_) : nullptr, step.f32(y_));
  }

 private:
  // Rows of intermediate_size, one a choice, sorted by expert: quantised alone where all experts read one form of them,
  // else as floats, too.
  struct Hidden {
    const float* x;
    FormedRows quantized;
  };

  Hidden run_gate_up(Step& step, const ExpertGroups& groups, const Weight* weights) const {
    const RowForm only = down_forms_.only();
    QuantizedRows direct;
    if (only != RowForm::floats) direct = take_quantized(step, groups.n, size_, only);
    float* floats = only == RowForm::floats ? step.scratch.take<float>(groups.n * size_) : nullptr;
    QuantizedRows* outputs = step.scratch.take<QuantizedRows>(groups.active);
    LinearTask* tasks = step.scratch.take<LinearTask>(groups.active);
    const FormedRows quantized = FormedRows::all(gate_up_forms_, [&](RowForm form) {
      return gather(step, step.quantized.get(step, x_, form), groups.tokens, groups.n, x_.width);
    });
    for (int64_t i = 0; i < groups.active; ++i) {
      LinearTask task;
      task.weight = weights[2 * i];
      task.rows.x = step.f32(x_);
      task.rows.stride = x_.width;
      task.rows.index = groups.tokens + groups.starts[i];
      task.rows.quantized = quantized.from(groups.starts[i], task.weight);
      task.rows.n = groups.size(i);
      task.out_cols = size_;
      task.epilogue = Epilogue::swiglu;
      if (only != RowForm::floats) {
        outputs[i] = direct.from(groups.starts[i]);
      } else {
        task.y = floats + groups.starts[i] * size_;
        task.y_stride = size_;
      }
      tasks[i] = task;
    }
    run_linear(step, tasks, groups.active, only != RowForm::floats ? outputs : nullptr);
    return {floats, FormedRows::all(down_forms_, [&](RowForm form) {
              return form == only ? direct : quantize(step, floats, size_, groups.n, size_, form);
            })};
  }

  // [choices, hidden], sorted by expert.
  const float* run_down(Step& step, const ExpertGroups& groups, const Weight* weights, const Hidden& hidden) const {
    float* parts = step.scratch.take<float>(groups.n * y_.width);
    LinearTask* tasks = step.scratch.take<LinearTask>(groups.active);
    for (int64_t i = 0; i < groups.active; ++i) {
      LinearTask task;
      task.weight = weights[2 * i + 1];
      if (hidden.x) task.rows.x = hidden.x + groups.starts[i] * size_;
      task.rows.stride = size_;
      task.rows.quantized = hidden.quantized.from(groups.starts[i], task.weight);
      task.rows.n = groups.size(i);
      task.y = parts + groups.starts[i] * y_.width;
      task.y_stride = task.out_cols = y_.width;
      tasks[i] = task;
    }
    run_linear(step, tasks, groups.active);
    return parts;
  }

  int64_t top_k_, size_;
  Buffer x_, indices_, weights_, shared_, y_;
  bool has_shared_;
  std::vector<uint32_t> experts_;         // ids of each expert's gate_up and down
  ReadForms gate_up_forms_, down_forms_;  // of all experts
};

}  // namespace

OpPtr make_moe(const OpSpec& spec) { return std::make_unique<Moe>(spec); }

}  // namespace deepmnn
