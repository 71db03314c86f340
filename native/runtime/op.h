// An op of docs/ops.md: built once when the program loads, when every shape is checked, so that run() cannot leave its
// buffers whatever the batch.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/program.h"
#include "runtime/quantized.h"
#include "runtime/rope_tables.h"
#include "runtime/weight_store.h"

namespace deepmnn {

class Step;

// Weights of an op that it reads only when its indices choose their expert: expert e has ids[e * each .. (e + 1) *
// each).
struct RoutedWeights {
  const uint32_t* ids = nullptr;
  int64_t experts = 0;  // 0: it has none
  int64_t each = 0;
  int64_t top_k = 0;  // indices of a row
};

class Op {
 public:
  virtual ~Op() = default;
  virtual void run(Step& step) = 0;
  virtual RoutedWeights routed() const { return {}; }
};

// A buffer as an op sees it: rows of `width` elements, Step::n(dim) of them.
struct Buffer {
  uint32_t id = 0;
  Dim dim = Dim::tokens;
  int64_t width = 0;
  int64_t offset = 0;   // bytes per row of the arena; -1: supplied by the caller
  size_t supplied = 0;  // of one that the caller supplies: which (Step::supplied)
};

// An instruction with everything it refers to, and the checks. Every method throws Error("artifact"), naming the
// instruction, when the program does not say what the op needs.
class OpSpec {
 public:
  OpSpec(const Program& program, const Instruction& instruction, RopeTables& ropes)
      : program_(program), instruction_(instruction), ropes_(ropes) {}

  size_t inputs() const { return instruction_.inputs.size(); }
  size_t outputs() const { return instruction_.outputs.size(); }
  size_t weights() const { return instruction_.weights.size(); }
  void require_counts(size_t inputs, size_t outputs, size_t weights) const;

  Buffer input(size_t index) const { return buffer(instruction_.inputs[index], false); }
  Buffer int_input(size_t index) const { return buffer(instruction_.inputs[index], true); }
  Buffer output(size_t index) const { return buffer(instruction_.outputs[index], false); }
  Buffer int_output(size_t index) const { return buffer(instruction_.outputs[index], true); }
  // The same, of a known dim and width.
  Buffer input(size_t index, Dim dim, int64_t width) const { return require_shape(input(index), dim, width); }
  Buffer int_input(size_t index, Dim dim, int64_t width) const { return require_shape(int_input(index), dim, width); }
  Buffer output(size_t index, Dim dim, int64_t width) const { return require_shape(output(index), dim, width); }
  Buffer int_output(size_t index, Dim dim, int64_t width) const { return require_shape(int_output(index), dim, width); }
  // Input `index` is this graph input: "ids" or "positions".
  void require_graph_input(size_t index, const char* name) const;

  // The int8 form in which the next instruction alone reads output `index` (reads_quantized); else floats.
  RowForm read_as(size_t index) const;

  int64_t weight_cols(size_t index) const;  // columns of weight `index`; of a vector its length

  void require_reading(size_t index, Reading reading) const;  // of weight `index`
  // Weights, whose bytes the op asks for at each step (Step::pin).
  WeightRef vector(size_t index, int64_t length) const;
  WeightRef matrix(size_t index) const;
  WeightRef matrix(size_t index, int64_t rows, int64_t cols) const;

  int64_t int_attr(const char* key, int64_t low, int64_t high) const;
  float float_attr(const char* key) const;
  const std::string& string_attr(const char* key) const;
  std::vector<int64_t> ints_attr(const char* key) const;
  // The cache entry that it writes as its number `index`, of this width; the others as CacheInfo has them.
  size_t cache(size_t index, int64_t width, int64_t ratio = 1, int64_t window = 0, bool exact = false) const;
  size_t rope_attr(int64_t dim) const;  // id of the table made of `inv_freq` (dim / 2 numbers) and `rope_scale`

  void require(bool ok, const std::string& found, const std::string& expected) const {
    if (!ok) reject(found, expected);
  }
  [[noreturn]] void reject(const std::string& found, const std::string& expected) const;

 private:
  Buffer buffer(uint32_t id, bool is_int) const;
  size_t supplied(uint32_t id) const;
  Buffer require_shape(Buffer buffer, Dim dim, int64_t width) const;
  const Attr& attr(const char* key) const;
  const WeightInfo& weight_info(size_t index) const;
  WeightRef weight(size_t index) const;

  const Program& program_;
  const Instruction& instruction_;
  RopeTables& ropes_;
};

// Extents above this are refused, so that a product of two always fits.
constexpr int64_t kMaxExtentAttr = int64_t{1} << 28;

// Each is looked for among those before it, and computed anew by every step.
constexpr size_t kMaxRopeTables = 256;

// The op the instruction names.
std::unique_ptr<Op> make_op(const OpSpec& spec, const std::string& name);

// Whether the instruction's op reads its first input, with the weights it has, as quantised rows and in no other way.
RowForm reads_quantized(const Program& program, const Instruction& instruction);

}  // namespace deepmnn
