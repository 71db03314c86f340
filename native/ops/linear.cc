#include "ops/gemm.h"
#include "ops/ops.h"

namespace deepmnn {
namespace {

// y0, y1, ... = the rows of W x in order. An output may start inside a block of 16 rows; such a block is computed into
// scratch and its columns are then handed out.
class Linear : public Op {
 public:
  explicit Linear(const OpSpec& spec) {
    spec.require(spec.inputs() == 1 && spec.outputs() >= 1 && (spec.weights() == 1 || spec.weights() == 2),
                 "its inputs, outputs and weights", "1 input, 1 or more outputs, 1 or 2 weights");
    x_ = spec.input(0);
    weight_ = spec.matrix(0);
    spec.require(weight_.cols == x_.width, "a weight of " + std::to_string(weight_.cols) + " columns",
                 std::to_string(x_.width));
    int64_t row = 0;
    for (size_t i = 0; i < spec.outputs(); ++i) {
      const Buffer y = spec.output(i);
      spec.require(y.dim == x_.dim, "input and outputs count different rows", "the same");
      outputs_.push_back({y, row, row + y.width});
      row += y.width;
    }
    spec.require(row == weight_.rows, "outputs of " + std::to_string(row) + " features in all",
                 std::to_string(weight_.rows));
    if (spec.weights() == 2) bias_ = spec.vector(1, weight_.rows);
    make_pieces();
  }

  void run(Step& step) override {
    const int64_t n = step.n(x_);
    if (n == 0) return;
    const Weight weight = step.pin(weight_);
    const float* bias = step.pin_vector(bias_);
    const Rows rows = input_rows(step, x_, weight);
    const int64_t count = static_cast<int64_t>(pieces_.size());
    LinearTask* tasks = step.scratch.take<LinearTask>(count);
    for (int64_t i = 0; i < count; ++i) tasks[i] = task(step, pieces_[static_cast<size_t>(i)], weight, bias, rows);
    run_linear(step, tasks, count);
    for (int64_t i = 0; i < count; ++i) {
      if (pieces_[static_cast<size_t>(i)].output < 0) hand_out(step, pieces_[static_cast<size_t>(i)], tasks[i]);
    }
  }

 private:
  struct Output {
    Buffer buffer;
    int64_t begin, end;  // rows of the weight
  };
  // Rows of the weight that one task computes: all of one output, or (output -1) a block that several share.
  struct Piece {
    int64_t begin, end;
    int output;
  };

  void make_pieces() {
    int64_t row = 0;
    while (row < weight_.rows) {
      int i = 0;
      while (outputs_[i].end <= row) ++i;
      const int64_t end = outputs_[i].end;
      const int64_t whole = end == weight_.rows ? end : end / kBlockRows * kBlockRows;
      if (whole > row) {
        pieces_.push_back({row, whole, i});
        row = whole;
      } else {
        const int64_t shared_end = std::min(row + kBlockRows, weight_.rows);
        pieces_.push_back({row, shared_end, -1});
        row = shared_end;
      }
    }
  }

  LinearTask task(Step& step, const Piece& piece, const Weight& weight, const float* bias, const Rows& rows) const {
    LinearTask task;
    task.weight = weight;
    task.weight.data += piece.begin / kBlockRows * block_nbytes(weight.format, weight.cols);
    task.weight.rows = piece.end - piece.begin;
    task.rows = rows;
    task.out_cols = piece.end - piece.begin;
    task.bias = bias ? bias + piece.begin : nullptr;
    if (piece.output < 0) {
      task.y = step.scratch.take<float>(rows.n * kBlockRows);
      task.y_stride = kBlockRows;
    } else {
      const Output& output = outputs_[piece.output];
      task.y = step.f32(output.buffer) + (piece.begin - output.begin);
      task.y_stride = output.buffer.width;
    }
    return task;
  }

  void hand_out(Step& step, const Piece& piece, const LinearTask& task) const {
    for (const Output& output : outputs_) {
      const int64_t begin = std::max(piece.begin, output.begin), end = std::min(piece.end, output.end);
      if (begin >= end) continue;
      float* y = step.f32(output.buffer) + (begin - output.begin);
      const float* from = task.y + (begin - piece.begin);
      for_rows(step, task.rows.n, end - begin, [&](int64_t row, int) {
        std::copy_n(from + row * kBlockRows, end - begin, y + row * output.buffer.width);
      });
    }
  }

  Buffer x_;
  WeightRef weight_, bias_;
  std::vector<Output> outputs_;
  std::vector<Piece> pieces_;
};

}  // namespace

OpPtr make_linear(const OpSpec& spec) { return std::make_unique<Linear>(spec); }

}  // namespace deepmnn
