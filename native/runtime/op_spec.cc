#include <algorithm>
#include <cmath>

#include "runtime/fail.h"
#include "runtime/op.h"

namespace deepmnn {
namespace {

const char* dim_name(Dim dim) {
  constexpr const char* names[] = {"tokens", "context", "rows"};
  return names[static_cast<int>(dim)];
}

std::string shape_name(Dim dim, int64_t width) {
  return "[" + std::string(dim_name(dim)) + ", " + std::to_string(width) + "]";
}

}  // namespace

void OpSpec::reject(const std::string& found, const std::string& expected) const {
  fail_artifact("program.bin: " + instruction_.name + " (" + instruction_.op + "): " + found, expected);
}

void OpSpec::require_counts(size_t inputs, size_t outputs, size_t weights) const {
  const auto counts = [](size_t i, size_t o, size_t w) {
    return std::to_string(i) + " inputs, " + std::to_string(o) + " outputs and " + std::to_string(w) + " weights";
  };
  require(this->inputs() == inputs && this->outputs() == outputs && this->weights() == weights,
          counts(this->inputs(), this->outputs(), this->weights()), counts(inputs, outputs, weights));
}

Buffer OpSpec::buffer(uint32_t id, bool is_int) const {
  const BufferInfo& info = program_.buffers[id];
  require(info.is_int == is_int, "buffer " + info.name + " is " + (info.is_int ? "i32" : "f32"),
          is_int ? "i32" : "f32");
  return {id, info.dim, info.width, info.offset, info.offset < 0 ? supplied(id) : 0};
}

// A buffer is one of outputs, or else of inputs, of one part alone.
size_t OpSpec::supplied(uint32_t id) const {
  const auto find = [id](const std::vector<uint32_t>& ids) {
    return static_cast<size_t>(std::find(ids.begin(), ids.end(), id) - ids.begin());
  };
  for (const ProgramPart& part : program_.parts) {
    const size_t output = find(part.outputs), outputs = part.outputs.size(), input = find(part.inputs);
    if (output < outputs) return output;
    if (input < part.inputs.size()) return outputs + input;
  }
  reject("buffer " + program_.buffers[id].name, "an input or output of a part");
}

Buffer OpSpec::require_shape(Buffer buffer, Dim dim, int64_t width) const {
  require(buffer.dim == dim && buffer.width == width,
          "buffer " + program_.buffers[buffer.id].name + " is " + shape_name(buffer.dim, buffer.width),
          shape_name(dim, width));
  return buffer;
}

void OpSpec::require_graph_input(size_t index, const char* name) const {
  const uint32_t id = instruction_.inputs[index];
  bool found = false;
  for (const ProgramPart& part : program_.parts) {
    for (uint32_t input : part.inputs) found = found || input == id;
  }
  require(found && program_.buffers[id].name == name, "input " + program_.buffers[id].name,
          std::string("the graph input ") + name);
}

RowForm OpSpec::read_as(size_t index) const {
  const uint32_t id = instruction_.outputs[index];
  const Instruction *const end = program_.instructions.data() + program_.instructions.size(), *const next =
                                                                                                  &instruction_ + 1;
  const bool only = program_.buffers[id].readers == 1 && program_.buffers[id].offset >= 0;  // and no output
  if (!only || next == end || next->inputs.size() != 1 || next->inputs[0] != id) return RowForm::floats;
  return reads_quantized(program_, *next);
}

const WeightInfo& OpSpec::weight_info(size_t index) const { return program_.weights[instruction_.weights[index].id]; }

int64_t OpSpec::weight_cols(size_t index) const { return weight_info(index).cols; }

void OpSpec::require_reading(size_t index, Reading reading) const {
  constexpr const char* names[kReadings] = {"whole", "in order", "by routing", "by look-up"};
  const Reading found = instruction_.weights[index].reading;
  require(found == reading, "weight " + weight_info(index).name + " read " + names[static_cast<int>(found)],
          std::string("read ") + names[static_cast<int>(reading)]);
}

WeightRef OpSpec::weight(size_t index) const {
  const WeightInfo& info = weight_info(index);
  return {instruction_.weights[index].id, info.rows, info.cols, info.format};
}

WeightRef OpSpec::vector(size_t index, int64_t length) const {
  const WeightInfo& info = weight_info(index);
  require(info.format == Format::vector && info.cols == length,
          "weight " + info.name + " (format " + std::to_string(static_cast<int>(info.format)) + ", " +
              std::to_string(info.cols) + " columns)",
          "a vector of " + std::to_string(length));
  return weight(index);
}

WeightRef OpSpec::matrix(size_t index) const {
  const WeightInfo& info = weight_info(index);
  require(info.format != Format::vector, "weight " + info.name + " is a vector", "a matrix");
  return weight(index);
}

WeightRef OpSpec::matrix(size_t index, int64_t rows, int64_t cols) const {
  const WeightRef weight = matrix(index);
  const auto shape = [](int64_t r, int64_t c) { return "[" + std::to_string(r) + ", " + std::to_string(c) + "]"; };
  require(weight.rows == rows && weight.cols == cols,
          "weight " + weight_info(index).name + " is " + shape(weight.rows, weight.cols), shape(rows, cols));
  return weight;
}

const Attr& OpSpec::attr(const char* key) const {
  const auto found = instruction_.attrs.find(key);
  if (found == instruction_.attrs.end()) reject(std::string("no attribute ") + key, "one");
  return found->second;
}

int64_t OpSpec::int_attr(const char* key, int64_t low, int64_t high) const {
  const int64_t* value = std::get_if<int64_t>(&attr(key));
  if (!value) reject(std::string("attribute ") + key, "an integer");
  require(*value >= low && *value <= high, std::string(key) + " = " + std::to_string(*value),
          std::to_string(low) + " to " + std::to_string(high));
  return *value;
}

float OpSpec::float_attr(const char* key) const {
  double number = NAN;
  if (const double* value = std::get_if<double>(&attr(key))) number = *value;
  if (const int64_t* value = std::get_if<int64_t>(&attr(key))) number = static_cast<double>(*value);
  require(std::isfinite(number), std::string("attribute ") + key, "a finite number");
  return static_cast<float>(number);
}

const std::string& OpSpec::string_attr(const char* key) const {
  const std::string* value = std::get_if<std::string>(&attr(key));
  if (!value) reject(std::string("attribute ") + key, "a string");
  return *value;
}

std::vector<int64_t> OpSpec::ints_attr(const char* key) const {
  const std::vector<int64_t>* values = std::get_if<std::vector<int64_t>>(&attr(key));
  if (!values) reject(std::string("attribute ") + key, "a list of integers");
  return *values;
}

size_t OpSpec::cache(size_t index, int64_t width, int64_t ratio, int64_t window, bool exact) const {
  require(index < instruction_.caches.size(), std::to_string(instruction_.caches.size()) + " cache entries",
          "at least " + std::to_string(index + 1));
  const CacheInfo& info = program_.caches[instruction_.caches[index]];
  require(info.width == width, "cache entry " + info.name + " of width " + std::to_string(info.width),
          std::to_string(width));
  require(info.ratio == ratio && info.window == window && info.exact == exact,
          "cache entry " + info.name + " with a row for " + std::to_string(info.ratio) + " tokens, a window of " +
              std::to_string(info.window) + (info.exact ? ", exact" : ""),
          "a row for " + std::to_string(ratio) + ", a window of " + std::to_string(window) + (exact ? ", exact" : ""));
  return instruction_.caches[index];
}

size_t OpSpec::rope_attr(int64_t dim) const {
  const std::vector<double>* inv_freq = std::get_if<std::vector<double>>(&attr("inv_freq"));
  if (!inv_freq) reject("attribute inv_freq", "a list of numbers");
  require(dim % 2 == 0 && static_cast<int64_t>(inv_freq->size()) == dim / 2,
          std::to_string(inv_freq->size()) + " numbers in inv_freq", "half of " + std::to_string(dim));
  for (double value : *inv_freq) require(std::isfinite(value), "inv_freq", "finite numbers");
  const size_t table = ropes_.add(*inv_freq, float_attr("rope_scale"));
  require(table < kMaxRopeTables, "one more rotary table", "at most " + std::to_string(kMaxRopeTables));
  return table;
}

}  // namespace deepmnn
